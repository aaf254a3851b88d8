"""A matrix under a method: its settings, its basis, and what a step leaves of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from gsr_kernels.basis import Precision, SpectralBasis, fingerprint
from gsr_kernels.distributed.schemes import Scheme
from gsr_kernels.distributed.shard import fingerprint_of_shards
from gsr_kernels.methods import Method
from gsr_kernels.methods.base import Heads, State
from gsr_kernels.offload import in_host_memory


@dataclass(eq=False)
class Weight:
    """One matrix under a method, and its group and index in the optimizer's ``param_groups``."""

    name: str
    # what the optimizer steps: the weight, or a buffer that its shard is a part of
    parameter: Tensor
    place: tuple[int, int]
    method: Method
    rank: int | None
    heads: Heads
    # how it is sharded
    scheme: Scheme
    # whether the basis stays in host memory
    offloaded: bool
    # whether a sketch may find it
    randomized: bool = False
    # of U and Vh, where the setting, a file or a checkpoint says one
    precision: Precision | None = None
    # the rank that was asked for where the weight has less
    clamped_from: int | None = None
    basis: SpectralBasis = field(init=False)
    state: State = field(init=False)
    # on the weight's device until they are asked for
    skipped: Tensor = field(init=False)
    # which of its matrices had a finite gradient in the last step that rewrote it
    finite: Tensor = field(init=False)
    measures: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0

    @property
    def whole(self) -> bool:
        """Return whether this rank has whole matrices, on which any method acts alone."""
        return not self.scheme.layout.shards_matrices

    @property
    def held(self) -> Tensor:
        """Return what this rank has of the weight, of one process all of it, as it is now."""
        return self.scheme.layout.local(self.parameter).detach()

    def keep(self, basis: SpectralBasis) -> None:
        """Take a basis that is on the weight's device."""
        self.basis = in_host_memory(basis) if self.offloaded else basis

    def move(self, device: torch.device) -> None:
        """Move what is kept of the weight to a device."""
        self.keep(self.basis.to(device))
        self.state = {key: value.to(device) for key, value in self.state.items()}
        self.skipped = self.skipped.to(device)


def decompose_one(weight: Weight, W: Tensor) -> SpectralBasis:
    """Return the basis of a whole weight; ValueError, by its name, where it has none."""
    W = W.detach()
    try:
        if weight.randomized or weight.precision:
            basis = SpectralBasis.of(W, weight.rank, weight.heads, weight.precision, weight.randomized)
        else:
            basis = weight.method.decompose(weight.name, W, weight.rank, weight.heads)
    except ValueError as error:
        raise ValueError(f"{weight.name}: {error}") from error
    if basis.fingerprint is None or weight.method.basis_kind:
        basis = replace(basis, fingerprint=_of_kind(weight, fingerprint(W)))
    return basis


def origin(weight: Weight) -> str:
    """Return the fingerprint that a stored basis of a weight must have; all ranks that share the weight must call."""
    return _of_kind(weight, fingerprint_of_shards(weight.held, weight.scheme.layout))


def _of_kind(weight: Weight, of_weight: str) -> str:
    kind = weight.method.basis_kind
    return of_weight + (f":{kind}" if kind else "")
