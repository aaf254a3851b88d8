"""How far a decomposition is from the truth in float64."""

import torch
from torch import Tensor

# of matrices with N directions: hard ones for a sketch, and easy ones
N = 192
PLACES = torch.arange(1, N + 1, dtype=torch.float64)
SPECTRA = {
    "flat": 1 - 0.9 * (PLACES - 1) / N,
    "outliers": 1 - 0.9 * (PLACES - 1) / N + 4 / PLACES,
    "far": torch.where(PLACES == 1, 1e3, 1 - 0.9 * (PLACES - 1) / N),
    "decaying": 1 / PLACES,
    "steep": torch.logspace(0, -5, N, dtype=torch.float64),
}


def defect(Q: Tensor) -> float:
    """The largest entry of ``QᵀQ − I``."""
    Q = Q.double()
    return (Q.mT @ Q - torch.eye(Q.shape[-1], dtype=Q.dtype)).abs().max().item()


def reconstruction(W: Tensor, U: Tensor, S: Tensor, Vh: Tensor) -> float:
    """``‖W − U diag(S) Vh‖ / ‖W‖``, Frobenius norm."""
    W, U, S, Vh = (tensor.double() for tensor in (W, U, S, Vh))
    return (torch.linalg.norm(W - (U * S.unsqueeze(-2)) @ Vh) / torch.linalg.norm(W)).item()


def remainder(W: Tensor, U: Tensor, S: Tensor, Vh: Tensor) -> float:
    """``‖W − U diag(S) Vh‖``, spectral norm."""
    return torch.linalg.matrix_norm(W.double() - (U.double() * S.double()) @ Vh.double(), 2).item()
