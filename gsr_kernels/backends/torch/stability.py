"""PS-LoRA's loss and counts of signs in plain torch. A strip of rows is stored at a time, never a matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from gsr_kernels.backends.torch.stages import widened

# elements of a strip, at the least and at the most: its four buffers stay in the cache, and where threads share their
# cores with others every strip more costs a meeting of theirs
STRIP = 1 << 16, 1 << 20


def strip(rows: int, columns: int) -> int:
    """Return the height of a strip: a sixteenth of the rows, within the bounds."""
    least, most = (max(1, entries // columns) for entries in STRIP)
    return min(most, max(least, -(-rows // 16)))


def stability(
    B: Tensor, A: Tensor, old_B: Tensor, old_A: Tensor, alpha: Tensor, sign_only: bool, gradients: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the loss ``[n]`` and, if asked for, its gradients ``[n, d1, r]`` and ``[n, r, d2]``, in float32 or better.

    Operands are ``B [n, d1, r]``, ``A [n, r, d2]``, ``old_B [n, d1, R]``, ``old_A [n, R, d2]``, ``alpha [n]``. With
    x = αD and p = αP the loss is ``Σ x² (1 − tanh x tanh p) / α²``, and α meets the factors of a strip alone.
    """
    _, (B, A, old_B, old_A) = widened(B, A, old_B, old_A)
    loss = torch.zeros(len(B), dtype=torch.float64, device=B.device)
    grad_B, grad_A = (torch.empty_like(B), torch.zeros_like(A)) if gradients else (None, None)
    height, one = strip(B.shape[1], A.shape[-1]), B.new_ones(())
    buffers = B.new_empty(4, height, A.shape[-1])
    for module, scale in enumerate(alpha.tolist()):
        a, old_a = A[module], old_A[module]
        for start in range(0, B.shape[1], height):
            rows = slice(start, start + height)
            b = B[module, rows]
            x, t, p, q = buffers[:, : len(b)]
            torch.mm(b * scale, a, out=x)
            torch.mm(old_B[module, rows] * scale, old_a, out=p)
            torch.tanh(x, out=t)
            p.tanh_()
            torch.mul(t, p, out=q)
            if gradients:
                # (1 − t²) p, the derivative of t p by x
                p.addcmul_(t, q, value=-1)
            torch.sub(one, q, out=q)
            if sign_only:
                loss[module] += q.sum()
                slope, factor = p, -scale
            else:
                loss[module] += torch.mul(q, x, out=t).mul_(x).sum() / scale**2
                # half of the derivative by x, 2 x q − x² (1 − t²) p
                slope, factor = q.addcmul_(x, p, value=-0.5).mul_(x), 2 / scale
            if grad_B is not None and grad_A is not None:
                grad_B[module, rows] = torch.mm(slope, a.mT).mul_(factor)
                grad_A[module].addmm_(b.mT, slope, alpha=factor)
    return loss.to(B.dtype), grad_B, grad_A


def sign_counts(B: Tensor, A: Tensor, old_B: Tensor, old_A: Tensor) -> tuple[Tensor, Tensor]:
    """Count the elements of D with the sign of P's, and those with the opposite one: two of ``[n]``, in float64."""
    _, (B, A, old_B, old_A) = widened(B, A, old_B, old_A)
    counts = torch.zeros(2, len(B), dtype=torch.float64, device=B.device)
    height = strip(B.shape[1], A.shape[-1])
    for module in range(len(B)):
        for start in range(0, B.shape[1], height):
            rows = slice(start, start + height)
            signs = (B[module, rows] @ A[module]).sign_().mul_((old_B[module, rows] @ old_A[module]).sign_())
            counts[0, module] += (signs > 0).sum()
            counts[1, module] += (signs < 0).sum()
    return counts[0], counts[1]
