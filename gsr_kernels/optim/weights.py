"""The matrices under a method, and the bases that they are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from gsr_kernels.basis import SpectralBasis, fingerprint, split_heads
from gsr_kernels.linalg.cost import progress, svd_cost
from gsr_kernels.methods import Method
from gsr_kernels.methods.base import Heads, State
from gsr_kernels.optim.metrics import Measures
from gsr_kernels.optim.offload import in_host_memory


@dataclass(eq=False)
class Weight:
    """One matrix under a method; ``place`` finds it in the optimizer's groups, since wrappers swap parameters."""

    name: str
    place: tuple[int, int]
    method: Method
    rank: int | None
    heads: Heads
    # whether the basis stays in host memory
    offloaded: bool
    # the rank that was asked for where the weight has less
    clamped_from: int | None = None
    basis: SpectralBasis = field(init=False)
    state: State = field(init=False)
    # on the weight's device until they are asked for
    skipped: Tensor = field(init=False)
    measures: Measures = field(default_factory=dict)
    steps: int = 0

    def keep(self, basis: SpectralBasis) -> None:
        """Takes a basis that lies on the weight's device."""
        self.basis = in_host_memory(basis) if self.offloaded else basis


def decompose(weights: Sequence[Weight], parameters: Sequence[Tensor]) -> list[SpectralBasis]:
    """A new basis of every parameter, with the fingerprint of the weight that it came from.

    The most costly first, when the least is held beside its workspace, under a progress bar weighted by cost.
    """
    costs = [svd_cost(parameter.shape) for parameter in parameters]
    bases: dict[int, SpectralBasis] = {}
    with progress("singular bases", sum(costs)) as bar:
        for place in sorted(range(len(weights)), key=lambda place: -costs[place]):
            weight, parameter = weights[place], parameters[place]
            try:
                basis = weight.method.decompose(weight.name, parameter.detach(), weight.rank, weight.heads)
            except ValueError as error:
                raise ValueError(f"{weight.name}: {error}") from error
            if basis.fingerprint is None or weight.method.basis_kind:
                basis = replace(basis, fingerprint=origin(weight, parameter))
            bases[place] = basis
            bar.update(costs[place])
    return [bases[place] for place in range(len(weights))]


def prepare(weights: Sequence[Weight], parameters: Sequence[Tensor], bases: Sequence[SpectralBasis]) -> list[State]:
    """What the methods keep for every parameter."""
    with torch.no_grad():
        return [
            weight.method.prepare(weight.name, basis.split(parameter), basis)
            for weight, parameter, basis in zip(weights, parameters, bases)
        ]


def stored_basis(weight: Weight, parameter: Tensor, stored: SpectralBasis | None) -> SpectralBasis | None:
    """A basis from a file, on the weight's device, if it has the weight's shape, split and rank; else None."""
    if stored is None:
        return None
    matrices, head_dim = split_heads(parameter, weight.heads)
    if stored.shape != matrices.shape or stored.head_dim != head_dim:
        return None
    # a method with bases of its own chose their rank
    fits = weight.method.basis_kind or stored.rank == (weight.rank or min(matrices.shape[-2:]))
    return stored.to(parameter.device) if fits else None


def origin(weight: Weight, parameter: Tensor) -> str:
    """The fingerprint of a weight as its method decomposes it: what a stored basis must have to serve."""
    kind = weight.method.basis_kind
    return fingerprint(parameter) + (f":{kind}" if kind else "")
