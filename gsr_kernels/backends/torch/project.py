"""Equation (2) in plain torch."""

from torch import Tensor

from gsr_kernels import reference
from gsr_kernels.backends.torch.wide import widened


def project(G: Tensor, U: Tensor, Vh: Tensor) -> Tensor:
    """``reference.project`` with products in float32 or better -> ``N [.., k, k]`` in the wider dtype of G and U."""
    dtype, (G, U, Vh) = widened(G, U, Vh)
    return reference.project(G, U, Vh).to(dtype)
