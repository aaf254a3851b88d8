"""Orthogonal subspace fine-tuning: updates stay out of each weight's principal subspace."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gsr_kernels.backends.torch.products import product
from gsr_kernels.basis import SpectralBasis, split_heads
from gsr_kernels.checks import check_choice, check_number
from gsr_kernels.messages import some
from gsr_kernels.methods.base import Heads, Method, State
from gsr_kernels.methods.projections import PROTECTING, block, operands

Variant = Literal["remove_block", "complement"]


@dataclass(frozen=True)
class OSF(Method):
    """The principal directions U_h, V_h of each weight are protected ("Sculpting Subspaces", arXiv 2504.07097):

        remove_block    G − U_h U_hᵀ G V_h V_hᵀ             the paper's equation
        complement      (I − U_h U_hᵀ) G (I − V_h V_hᵀ)     what public implementations train

    An adaptive optimizer makes steps that leave the subspace of its gradients, so the weight is projected after each
    step as well: what is protected keeps the value that it had when the task began. Needs float32 weights: the rounding
    of a 16-bit weight alone moves the protected block.

    Args:
        protect: the protected share of each weight's r directions, in (0, 1), rounded down: ``⌊share · r⌋``; or
            ``{parameter name: share}`` with shares in [0, 1], rounded to the nearest, as ``adaptive_shares`` makes
            them. Every weight has at least one protected direction. A half by default, as in PEFT.
        variant: one of the two.

    Raises ValueError where either is out of range, and in attach() for a weight without a share.
    """

    # the protected directions alone
    own_basis = True

    protect: float | Mapping[str, float] = 0.5
    variant: Variant = "remove_block"

    def __post_init__(self) -> None:
        check_choice("variant", self.variant, Variant)
        shares = self.protect if isinstance(self.protect, Mapping) else {"every weight": self.protect}
        for name, share in shares.items():
            check_number(f"protect of {name}", share, 0, 1)
        for share, protected in enumerate(("nothing", "everything, so that nothing is trained")):
            if all(one == share for one in shares.values()):
                raise ValueError(f"protect = {share} for every weight protects {protected}")

    def __repr__(self) -> str:
        protect = f"{len(self.protect)} shares" if isinstance(self.protect, Mapping) else self.protect
        return f"OSF(protect={protect}, variant={self.variant!r})"

    @property
    def lasting(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("block",) if self.variant == "remove_block" else ("rows", "columns")

    def decompose(self, name: str, W: Tensor, rank: int | None, heads: Heads) -> SpectralBasis:
        """Return the protected directions, in full precision: 16 bits would leak."""
        if rank is not None:
            raise ValueError("rank must be None for OSF: it keeps the directions that it protects, see protect")
        r = min(split_heads(W, heads)[0].shape[-2:])
        if not isinstance(self.protect, Mapping):
            # 0.29 · 100 is 29, not 28: the rounding of the product is no direction
            protected = math.floor(self.protect * r + 1e-9)
        elif name in self.protect:
            protected = round(self.protect[name] * r)
        else:
            raise ValueError(
                f"protect has no share for it, but for {some(self.protect)}: add it, or leave it out by targets"
            )
        precision = "fp64" if W.dtype == torch.float64 else "fp32"
        return SpectralBasis.of(W, max(1, protected), heads, precision)

    def prepare(self, name: str, W: Tensor, basis: SpectralBasis) -> State:
        """Return the protected parts of W: ``U_hᵀ W V_h``, or ``U_hᵀ W`` and ``W V_h``."""
        wide, U, Vh = operands(W, basis)
        if self.variant == "remove_block":
            return {"block": block(wide, U, Vh)}
        return {"rows": product(U.mT, wide), "columns": product(wide, Vh.mT)}

    def gradient(self, G: Tensor, W: Tensor, basis: SpectralBasis, state: State) -> Tensor:
        return PROTECTING[self.variant](*operands(G, basis))

    def constrain(self, W: Tensor, basis: SpectralBasis, state: State) -> None:
        """Give the protected parts of W their values back."""
        wide, U, Vh = operands(W, basis)
        if self.variant == "remove_block":
            W.copy_(wide - product(U, product(block(wide, U, Vh) - state["block"], Vh)))
        else:
            wide = wide - product(U, product(U.mT, wide) - state["rows"])
            W.copy_(wide - product(product(wide, Vh.mT) - state["columns"], Vh))


def adaptive_shares(importance: Mapping[str, float], mrr: float = 0.1, trr: float = 0.8) -> dict[str, float]:
    """Return protected shares ``mrr + I (trr − mrr)``, I the layer's importance scaled to mean 1, clipped to [0, 1].

    Args:
        importance: by parameter name, as ``layer_importance`` measures it.
        mrr, trr: the share of a layer without importance, and of one with the mean importance.

    Raises ValueError where not ``0 <= mrr <= trr <= 1``, or where the mean importance is not above 0.
    """
    if not 0 <= mrr <= trr <= 1:
        raise ValueError(f"mrr and trr must be shares with 0 <= mrr <= trr <= 1, got {mrr} and {trr}")
    mean = sum(importance.values()) / max(1, len(importance))
    if not mean > 0:
        raise ValueError(f"importance must have a positive mean to be scaled by, got {mean:.3g}: give protect a share")
    return {name: min(1.0, max(0.0, mrr + one / mean * (trr - mrr))) for name, one in importance.items()}


def scheduled_share(task: int, tasks: int) -> float:
    """Return the paper's schedule for equal shares: ``task / tasks``, task counted from 0.

    The share of the first task is 0: it is trained without OSF. Raises ValueError where not ``0 <= task < tasks``.
    """
    if not 0 <= task < tasks:
        raise ValueError(f"task must lie in [0, tasks), got {task} of {tasks}")
    return task / tasks
