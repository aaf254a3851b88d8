"""Base of the methods: arithmetic on tensors around an optimizer step, ignorant of optimizer and mesh."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gsr_kernels.basis import SpectralBasis, split_heads
from gsr_kernels.methods.contract import check_gradient, check_hooks

State = dict[str, Tensor]

# gradient, weight, basis and state of several weights
Matrices = Sequence[tuple[Tensor, Tensor, SpectralBasis, State]]

# how a weight is split: None whole, h its rows into h heads, (h, 1) its columns
Heads = int | tuple[int, int] | None


def wide(tensor: Tensor) -> Tensor:
    """Return a tensor in float32 or better."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def finite_matrices(G: Tensor) -> Tensor:
    """Tell which matrices ``[..]`` of ``G [.., d1, d2]`` hold neither NaN nor Inf."""
    # both show in the extremes; isfinite() over all of G, or its norm, took four times as long on a CPU
    return G.amax((-2, -1)).isfinite() & G.amin((-2, -1)).isfinite()


def part(state: Mapping[str, Tensor], key: str) -> State:
    """Return the entries ``key.…`` of a flat state, without the key."""
    return {name.removeprefix(f"{key}."): one for name, one in state.items() if name.startswith(f"{key}.")}


@dataclass(frozen=True)
class Method:
    """Base of all methods: frozen settings and functions of ``(G, W, basis, state)``, one weight at a time.

    ``W``, ``G`` ``[.., d1, d2]`` and ``basis`` have the same leading dimensions (experts, heads). ``state`` holds what
    a method keeps for a weight during a task: tensors only, changed in place.
    """

    # whether the singular basis of W enters: where it does not, decompose() may return any other
    uses_basis: ClassVar[bool] = True
    # whether decompose() returns another basis than that of W at the rank asked for
    own_basis: ClassVar[bool] = False
    # whether the basis may be a truncated one
    truncated: ClassVar[bool] = True
    # keys of the state that the basis and a later W cannot give again: checkpoints hold them
    lasting: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        """Raise TypeError for a misspelt hook."""
        super().__init_subclass__()
        check_hooks(cls, Method)

    @property
    def basis_kind(self) -> str:
        """Name of its bases in a file; empty where they are those of W itself."""
        return type(self).__name__ if self.own_basis or not self.uses_basis else ""

    @property
    def own_decompose(self) -> bool:
        """True where decompose() is overridden: the basis is then as precise as that makes it."""
        return type(self).decompose is not Method.decompose

    @property
    def constrains(self) -> bool:
        """True where constrain() does anything: only then is it called after every step."""
        return type(self).constrain is not Method.constrain

    def decompose(self, name: str, W: Tensor, rank: int | None, heads: Heads) -> SpectralBasis:
        """Return the basis of one weight, when a task begins; ``name`` is the parameter's.

        An override is called for one weight after another; this one also from several threads. Where ``uses_basis``
        is False nothing is decomposed, and one direction of zeros stands for the basis.
        """
        if not self.uses_basis:
            matrix, head_dim = split_heads(wide(W.detach()), heads)
            U, Vh = matrix.new_zeros(*matrix.shape[:-1], 1), matrix.new_zeros(*matrix.shape[:-2], 1, matrix.shape[-1])
            return SpectralBasis(U, Vh[..., :1, 0], Vh, head_dim=head_dim)
        return SpectralBasis.of(W, rank=rank, heads=heads)

    def prepare(self, name: str, W: Tensor, basis: SpectralBasis) -> State:
        """Return what the method keeps for this weight during the task; ValueError for a basis that does not do."""
        if not (self.truncated or basis.full_rank):
            raise ValueError(f"rank must be None for {type(self).__name__}: it leaves out directions of {name}")
        return {}

    def gradient(self, G: Tensor, W: Tensor, basis: SpectralBasis, state: State) -> Tensor:
        """Return the gradient that the optimizer is given in place of G."""
        return G

    def constrain(self, W: Tensor, basis: SpectralBasis, state: State) -> None:
        """Correct W in place after the optimizer has moved it."""

    def transform(self, matrices: Matrices, scale: Tensor | None = None) -> list[Tensor]:
        """Rewrite a model's gradients in place; return which matrices were finite, a bool ``[..]`` a weight.

        A matrix with a NaN or Inf in its gradient keeps it as it came. ``scale`` is what the gradients are still
        multiplied by (a gradient scaler's, which a fused optimizer divides by later).
        """
        flags = []
        for G, W, basis, state in matrices:
            finite = finite_matrices(G)
            self._rewrite(G, W, basis, state, finite)
            flags.append(finite)
        return flags

    def _rewrite(self, G: Tensor, W: Tensor, basis: SpectralBasis, state: State, finite: Tensor) -> None:
        """Rewrite the finite ones of a weight's gradients in place."""
        found = self.gradient(G, W, basis, state)
        check_gradient(self, found, G, W, finite)
        torch.where(finite[..., None, None], found.to(G.dtype), G, out=G)


def of_any_task(method: Any) -> Any:
    """Return a method as it is, and of settings that become one what they become by default."""
    return method.makes() if isinstance(method, TaskMethod) else method


class TaskMethod(ABC):
    """Base of settings that become a method when a task begins."""

    # what it becomes
    makes: ClassVar[type[Method]]

    @abstractmethod
    def for_task(self, model: nn.Module, batches: Iterable[Any], task: int = 0, tasks: int = 1) -> Method | None:
        """Return the method of a task, counted from 0, or None where it is trained without one.

        Args:
            batches: a few of the task's, what the model is called with.
        """
