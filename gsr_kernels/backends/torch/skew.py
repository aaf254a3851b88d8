"""Equation (3) in plain torch."""

from torch import Tensor

from gsr_kernels import reference
from gsr_kernels.backends.torch.wide import widened


def skew(N: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """``reference.skew`` in float32 or better -> H, K in N's dtype."""
    dtype = N.dtype
    _, (N, S) = widened(N, S)
    H, K = reference.skew(N, S)
    return H.to(dtype).contiguous(), K.to(dtype).contiguous()
