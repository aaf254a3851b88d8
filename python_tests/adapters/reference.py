"""What the methods compute, written with whole matrices: the oracle of the forms that never store one.

An adapter is ``D = B A [.., d1, d2]`` with ``B [.., d1, r]`` (PEFT's lora_B, times its scaling) and ``A [.., r, d2]``
(its lora_A); those of earlier tasks, side by side, are ``P = old_B old_A`` with ``old_B [.., d1, R]``,
``old_A [.., R, d2]``. Leading dimensions are batches of modules. Everything is in the dtype given.
"""

import torch
from torch import Tensor

from bench.cases.adapters_gpu import dense_loss as stability_loss

__all__ = ["merged", "sign_shares", "stability_loss"]


def merged(B: Tensor, A: Tensor, how: str, density: float = 1.0) -> Tensor:
    """What ``merging.merge`` adds, of ``B [T, d1, r]`` and ``A [T, r, d2]``."""
    D = B @ A
    if how == "magnitude":
        M = D[0]
        for delta in D[1:]:
            M = torch.where(delta.abs() >= M.abs(), delta, M)
        return M
    if how == "ties":
        kept = int(density * D[0].numel() + 1e-9)
        least = D.abs().flatten(1).sort(descending=True).values[:, kept - 1]
        trimmed = torch.where(D.abs() >= least[:, None, None], D, 0)
        chosen = (trimmed.sign() == trimmed.sum(0).sign()) & (trimmed != 0)
        return (trimmed * chosen).sum(0) / chosen.sum(0).clamp_min(1)
    return {"sum": D.sum(0), "mean": D.mean(0)}[how]


def sign_shares(B: Tensor, A: Tensor, old_B: Tensor, old_A: Tensor) -> tuple[Tensor, Tensor]:
    """The shares ``[..]`` of D's entries with the sign of P's, and with the opposite one."""
    signs = (B @ A).sign() * (old_B @ old_A).sign()
    return (signs > 0).to(B.dtype).mean((-2, -1)), (signs < 0).to(B.dtype).mean((-2, -1))
