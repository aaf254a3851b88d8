"""Equation (8) in plain torch."""

from torch import Tensor

from gsr_kernels import reference
from gsr_kernels.backends.torch.wide import widened


def recompose(H: Tensor, g: Tensor, K: Tensor, U: Tensor, S: Tensor, Vh: Tensor) -> Tensor:
    """``reference.recompose`` in float32 or better -> G' in U's dtype."""
    dtype = U.dtype
    _, (H, g, K, U, S, Vh) = widened(H, g, K, U, S, Vh)
    return reference.recompose(H, g, K, U, S, Vh).to(dtype)
