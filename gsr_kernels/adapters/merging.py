"""Merge several tasks' adapters into one weight."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from gsr_kernels.adapters.stability import check_factor
from gsr_kernels.checks import Backend, check_choice, check_fit, check_number
from gsr_kernels.ops import implementation

How = Literal["magnitude", "sum", "mean", "ties"]
# the share of entries that TIES keeps, as its paper does
DENSITY = 0.2


@torch.no_grad()
def merge(
    W: Tensor, B: Tensor, A: Tensor, how: How = "magnitude", density: float = DENSITY, backend: Backend = "auto"
) -> Tensor:
    """Add M to W in place, made of the adapters ``D_t = B_t A_t``, oldest first:

        magnitude   M_ij = the D_t,ij of largest size; of equal ones the newest (PS-LoRA, algorithm 1)
        sum, mean   Σ_t D_t, or 1 / T of it
        ties        of each D_t the largest ``density`` of its entries; of what is left of an entry the mean over the
                    adapters whose sign is that of their sum (Yadav et al. 2023, lambda 1)

    Args:
        W: ``[d1, d2]`` of any float dtype and strides; the sum is rounded to it once.
        B: ``[T, d1, r]``, scalings included. A: ``[T, r, d2]``.
        how: one of the four.
        density: in (0, 1], for "ties".
        backend: "auto" (Triton on a GPU, torch elsewhere), "torch" or "triton".

    Returns W. Raises TypeError where an operand is no floating-point tensor, or a DTensor, ValueError where shapes do
    not fit, how, density or backend is out of range. W is then as it was.
    """
    for name, tensor in (("W", W), ("B", B), ("A", A)):
        check_factor(name, tensor)
    check_how(how, density)
    T, r, (d1, d2) = len(B), B.shape[-1], W.shape[-2:]
    check_fit(W=(W, (d1, d2)), B=(B, (T, d1, r)), A=(A, (T, r, d2)))
    with torch.autocast(W.device.type, enabled=False):
        implementation("merge", backend, W.device)(W, B, A, how, density)
    return W


def check_how(how: str, density: float) -> None:
    """Raise ValueError for an unknown way of merging, and for a density outside of (0, 1]."""
    check_choice("how", how, How)
    check_number("density", density, 0, 1, above=True)


def check_finite(adapter: str, name: str, *factors: Tensor) -> None:
    """Raise ValueError for factors with NaN or Inf, which would spread over the weight."""
    if not all(factor.isfinite().all() for factor in factors):
        raise ValueError(f"adapter {adapter!r} holds NaN or Inf at {name}: it cannot be merged")
