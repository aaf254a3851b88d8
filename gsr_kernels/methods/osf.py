"""Orthogonal subspace fine-tuning: updates stay out of each weight's principal subspace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gsr_kernels.basis import SpectralBasis
from gsr_kernels.methods.base import Method, State
from gsr_kernels.methods.projections import complement, operands, remove_block

VARIANTS = ("remove_block", "complement")


@dataclass(frozen=True)
class OSF(Method):
    """The principal directions U_h, V_h of each weight are protected ("Sculpting Subspaces", arXiv 2504.07097):

        remove_block    G − U_h U_hᵀ G V_h V_hᵀ             the paper's equation
        complement      (I − U_h U_hᵀ) G (I − V_h V_hᵀ)     what public implementations train

    An adaptive optimizer makes steps that leave the subspace of its gradients, so the weight is projected after each
    step as well: what is protected keeps the value that it had when the task began. Needs float32 weights: the rounding
    of a 16-bit weight alone moves the protected block.

    Args:
        protect: the protected share of each weight's directions, in (0, 1); or ``{parameter name: share}`` with shares
            in (0, 1]. A half by default. Every weight has at least one protected direction.
        variant: one of ``VARIANTS``.

    Raises ValueError where either is out of range, or where every weight would be protected whole.
    """

    protect: float | Mapping[str, float] = 0.5
    variant: str = "remove_block"

    constrains: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {self.variant!r}")
        shares = self.protect.values() if isinstance(self.protect, Mapping) else [self.protect]
        wrong = [share for share in shares if not 0 < share <= 1]
        if wrong or not shares:
            raise ValueError(f"protect must be shares in (0, 1); {wrong[0] if wrong else 'none'} protects nothing")
        if all(share == 1 for share in shares):
            raise ValueError("protect = 1 for every weight protects everything: nothing would be trained")

    def decompose(self, name: str, W: Tensor, rank: int | None, heads: int | None) -> SpectralBasis:
        """The protected directions alone."""
        if rank is not None:
            raise ValueError("rank must be None for OSF: it keeps the directions that it protects, see protect")
        most = min(W.shape[-2:]) if heads is None else min(W.shape[-2] // heads, W.shape[-1])
        return super().decompose(name, W, min(most, max(1, round(self._share(name) * most))), heads)

    def prepare(self, name: str, W: Tensor, basis: SpectralBasis) -> State:
        """The protected parts of W: ``U_hᵀ W V_h``, or ``U_hᵀ W`` and ``W V_h``."""
        wide, U, Vh = operands(W, basis)
        if self.variant == "remove_block":
            return {"block": U.mT @ wide @ Vh.mT}
        return {"rows": U.mT @ wide, "columns": wide @ Vh.mT}

    def gradient(self, G: Tensor, W: Tensor, basis: SpectralBasis, state: State) -> Tensor:
        """See the class."""
        return (remove_block if self.variant == "remove_block" else complement)(*operands(G, basis))

    def constrain(self, W: Tensor, basis: SpectralBasis, state: State) -> None:
        """Gives the protected parts of W their values back."""
        wide, U, Vh = operands(W, basis)
        if self.variant == "remove_block":
            W.copy_(wide - U @ ((U.mT @ wide @ Vh.mT - state["block"]) @ Vh))
        else:
            wide = wide - U @ (U.mT @ wide - state["rows"])
            W.copy_(wide - (wide @ Vh.mT - state["columns"]) @ Vh)

    def _share(self, name: str) -> float:
        if not isinstance(self.protect, Mapping):
            return self.protect
        if name not in self.protect:
            raise ValueError(f"protect has no share for {name}; it names {', '.join(self.protect)}")
        return self.protect[name]
