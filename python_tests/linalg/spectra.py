"""Matrices of a given spectrum, and how far a decomposition is from the truth in float64."""

import torch
from torch import Tensor


def spectrum(kind: str, r: int, condition: float = 1e5) -> Tensor:
    """Singular values from 1 down to 1 / condition, float64."""
    if kind == "log":
        return torch.logspace(0, -torch.log10(torch.tensor(condition)).item(), r, dtype=torch.float64)
    return torch.linspace(1, 1 / condition, r, dtype=torch.float64)


def matrix(m: int, n: int, S: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """A random ``[m, n]`` with the singular values S."""
    U, V = (torch.linalg.qr(torch.randn(side, len(S), dtype=torch.float64)).Q for side in (m, n))
    return ((U * S) @ V.T).to(dtype)


def defect(Q: Tensor) -> float:
    """The largest entry of ``QᵀQ − I``."""
    Q = Q.double()
    return (Q.mT @ Q - torch.eye(Q.shape[-1], dtype=Q.dtype)).abs().max().item()


def reconstruction(W: Tensor, U: Tensor, S: Tensor, Vh: Tensor) -> float:
    """``‖W − U diag(S) Vh‖ / ‖W‖``, Frobenius norm."""
    W, U, S, Vh = (tensor.double() for tensor in (W, U, S, Vh))
    return (torch.linalg.norm(W - (U * S.unsqueeze(-2)) @ Vh) / torch.linalg.norm(W)).item()
