"""PS-LoRA's stability loss, from the factors: no matrix of a weight's size is ever stored."""

from __future__ import annotations

from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gsr_kernels.backends.torch.stages import widened
from gsr_kernels.checks import Backend, check_choice, check_fit
from gsr_kernels.ops import implementation

Terms = Literal["both", "magnitude", "sign"]
# beyond, squares of alpha D leave float32; no entry of a weight is as small or as large as their inverses
LEAST, MOST = 1e-12, 1e12


def stability_loss(
    B: Tensor,
    A: Tensor,
    old_B: Tensor,
    old_A: Tensor,
    alpha: float | Literal["auto"] | Tensor = "auto",
    terms: Terms = "both",
    backend: Backend = "auto",
) -> Tensor:
    """Return PS-LoRA's stability loss of each module (equation 4 of its paper):

        Σ_ij D_ij² (1 − tanh(α D_ij) tanh(α P_ij))        D = B A,  P = old_B old_A

    with gradients for B and A; old_B, old_A and alpha are constants.

    Args:
        B: ``[.., d1, r]`` of the current task, A: ``[.., r, d2]``, any float dtype; leading dimensions are modules.
        old_B: ``[.., d1, R]`` and old_A: ``[.., R, d2]``, the factors of all earlier tasks side by side.
        alpha: how soon a sign counts as one: a number in [1e-12, 1e12]; a tensor with one of each module, whose range
            is not checked; or "auto", see ``auto_alpha``.
        terms: "both"; "magnitude", the sum of D² alone; "sign", that of ``1 − tanh(α D) tanh(α P)`` alone.
        backend: "auto" (Triton on a GPU, torch elsewhere), "torch" or "triton".

    Returns the loss ``[..]`` in float32, or in float64 for factors that are. Raises TypeError where a factor is no
    floating-point tensor, or a DTensor, ValueError where shapes or devices do not fit; alpha, terms or backend is out
    of range.
    """
    _check(B, A, old_B, old_A)
    check_choice("terms", terms, Terms)
    batch = B.shape[:-2]
    if terms == "magnitude":
        # in float64: columns of B may nearly cancel
        return _square(B.double(), A.double()).to(widened(B, A)[1][0].dtype)
    scale = auto_alpha(old_B, old_A) if alpha == "auto" else check_alpha(alpha, batch, B.device)
    flat = [factor.reshape(-1, *factor.shape[-2:]) for factor in (B, A, old_B, old_A)]
    compute = implementation("stability", backend, B.device)
    return _Stability.apply(*flat, scale.reshape(-1), terms == "sign", compute).view(batch)


def sign_shares(B: Tensor, A: Tensor, old_B: Tensor, old_A: Tensor, backend: Backend = "auto") -> tuple[Tensor, Tensor]:
    """Return the shares of D's entries with the sign of P's, and with the opposite one; ``[..]`` each, in float64.

    Zeros belong to neither. Arguments and errors as ``stability_loss``.
    """
    _check(B, A, old_B, old_A)
    flat = [factor.detach().reshape(-1, *factor.shape[-2:]) for factor in (B, A, old_B, old_A)]
    with torch.autocast(B.device.type, enabled=False):
        same, opposite = implementation("sign_counts", backend, B.device)(*flat)
    entries = B.shape[-2] * A.shape[-1]
    return (same / entries).view(B.shape[:-2]), (opposite / entries).view(B.shape[:-2])


@torch.no_grad()
def auto_alpha(old_B: Tensor, old_A: Tensor) -> Tensor:
    """Return ``1 / rms(P)`` of each module ``[..]``, within [1e-12, 1e12]; 1 where P is zero.

    The sign of a typical entry then counts: the paper gives no value, and 1 lets the signs vanish at the size of an
    adapter. The norm comes from the factors, ``‖P‖² = Σ (old_Bᵀ old_B) ⊙ (old_A old_Aᵀ)``.
    """
    squares = _square(old_B.double(), old_A.double()).clamp_min(0)
    rms = (squares / (old_B.shape[-2] * old_A.shape[-1])).sqrt()
    return torch.where(rms > 0, 1 / torch.where(rms > 0, rms, 1), 1).clamp(LEAST, MOST)


def check_alpha(alpha: float | Tensor, batch: torch.Size, device: torch.device) -> Tensor:
    """Return alpha as a float64 tensor of the batch's shape; ValueError for a number out of bounds."""
    if isinstance(alpha, Tensor):
        if alpha.shape not in (batch, ()):
            raise ValueError(f"alpha must be one number, or one a module {tuple(batch)}, got {tuple(alpha.shape)}")
        return alpha.to(device, torch.float64).expand(batch)
    if not isinstance(alpha, Real) or isinstance(alpha, bool) or not LEAST <= alpha <= MOST:
        raise ValueError(f"alpha must be 'auto' or a number in [{LEAST:g}, {MOST:g}], got {alpha!r}")
    return torch.full(batch, float(alpha), dtype=torch.float64, device=device)


def check_factor(name: str, factor: Tensor) -> None:
    """Raise TypeError for what is no float matrix of 16 bits or more, and for a sharded one."""
    if not isinstance(factor, Tensor) or not factor.is_floating_point() or factor.ndim < 2:
        got = f"{factor.dtype} {tuple(factor.shape)}" if isinstance(factor, Tensor) else type(factor).__name__
        raise TypeError(f"{name} must be a real floating-point tensor [.., d1, d2], got {got}")
    if factor.dtype.itemsize < 2:
        raise TypeError(f"{name} is kept as {factor.dtype}, whose scales are elsewhere: use 16 bits or more")
    if hasattr(factor, "placements"):
        raise TypeError(f"{name} is sharded (DTensor), which is not supported: keep adapters whole on every rank")


def _check(B: Tensor, A: Tensor, old_B: Tensor, old_A: Tensor) -> None:
    for name, factor in (("B", B), ("A", A), ("old_B", old_B), ("old_A", old_A)):
        check_factor(name, factor)
    *batch, d1, r = B.shape
    R, d2 = old_B.shape[-1], A.shape[-1]
    check_fit(
        B=(B, B.shape), A=(A, (*batch, r, d2)), old_B=(old_B, (*batch, d1, R)), old_A=(old_A, (*batch, R, d2))
    )  # fmt: skip


def _square(B: Tensor, A: Tensor) -> Tensor:
    """Return ``‖B A‖²`` by two products of r × r."""
    return ((B.mT @ B) * (A @ A.mT)).sum((-2, -1))


class _Stability(torch.autograd.Function):
    """Loss and gradients in one pass: what is kept for the way back has the size of the factors."""

    @staticmethod
    def forward(
        ctx: Any, B: Tensor, A: Tensor, old_B: Tensor, old_A: Tensor, alpha: Tensor, sign_only: bool, compute: Any
    ) -> Tensor:
        with torch.autocast(B.device.type, enabled=False):
            loss, grad_B, grad_A = compute(B, A, old_B, old_A, alpha, sign_only, any(ctx.needs_input_grad[:2]))
        if grad_B is not None:
            ctx.save_for_backward(grad_B, grad_A)
            ctx.dtypes = B.dtype, A.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        grad_B, grad_A = ctx.saved_tensors
        # a loss scaler's upstream may not fit into 16 bits, where its product with a gradient does
        found = [(upstream[:, None, None] * grad).to(dtype) for grad, dtype in zip((grad_B, grad_A), ctx.dtypes)]
        return *found, None, None, None, None, None
