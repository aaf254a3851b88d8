"""Several methods on one optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from gsr_kernels.basis import SpectralBasis
from gsr_kernels.methods.base import Heads, Matrices, Method, State, part


@dataclass(frozen=True)
class Chain(Method):
    """Methods applied in the order given, each to the gradients that the one before it leaves, with one basis.

    Raises TypeError for what is no method, ValueError, by name, for methods that cannot go together: two that correct
    the weight after the step, or two of which one needs a basis of its own.
    """

    methods: tuple[Method, ...]

    def __post_init__(self) -> None:
        wrong = [method for method in self.methods if not isinstance(method, Method) or isinstance(method, Chain)]
        if wrong or not self.methods:
            raise TypeError(f"method must be one of gsr_kernels.methods or several, got {self.methods!r}")
        constraining = [method for method in self.methods if method.constrains]
        if len(constraining) > 1:
            raise ValueError(f"method: {_names(constraining)} cannot go together: each corrects the weight")
        using = [method for method in self.methods if method.uses_basis]
        if len(using) > 1 and any(method.own_basis for method in using):
            raise ValueError(f"method: {_names(using)} cannot go together: they need different bases")

    @property
    def own_basis(self) -> bool:  # type: ignore[override]
        return any(method.own_basis for method in self.methods)

    @property
    def basis_kind(self) -> str:
        return self._leading.basis_kind

    @property
    def own_decompose(self) -> bool:
        return self._leading.own_decompose

    @property
    def lasting(self) -> tuple[str, ...]:  # type: ignore[override]
        """Keys of each, its index before the key."""
        return tuple(f"{index}.{key}" for index, method in enumerate(self.methods) for key in method.lasting)

    @property
    def constrains(self) -> bool:
        return any(method.constrains for method in self.methods)

    def decompose(self, name: str, W: Tensor, rank: int | None, heads: Heads) -> SpectralBasis:
        return self._leading.decompose(name, W, rank, heads)

    def prepare(self, name: str, W: Tensor, basis: SpectralBasis) -> State:
        """Return what each keeps, its index before the key."""
        return {
            f"{index}.{key}": value
            for index, method in enumerate(self.methods)
            for key, value in method.prepare(name, W, basis).items()
        }

    def constrain(self, W: Tensor, basis: SpectralBasis, state: State) -> None:
        for index, method in enumerate(self.methods):
            if method.constrains:
                method.constrain(W, basis, part(state, str(index)))

    def transform(self, matrices: Matrices, scale: Tensor | None = None) -> list[Tensor]:
        flags: list[Tensor] = []
        for index, method in enumerate(self.methods):
            own = [(G, W, basis, part(state, str(index))) for G, W, basis, state in matrices]
            found = method.transform(own, scale)
            flags = [old & new for old, new in zip(flags, found)] if flags else found
        return flags

    @property
    def _leading(self) -> Method:
        return next((method for method in self.methods if method.uses_basis), self.methods[0])


def _names(methods: Sequence[Method]) -> str:
    return " and ".join(type(method).__name__ for method in methods)
