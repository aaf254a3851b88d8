"""The fused step on one weight."""

from torch import Tensor

from gsr_kernels.backends.triton.rescale_gradients import rescale_gradients
from gsr_kernels.basis import SpectralBasis


def rescale_gradient(G: Tensor, U: Tensor, S: Tensor, Vh: Tensor, rho: float, out_of_span: str, out: Tensor) -> Tensor:
    """Writes G' to ``out [.., d1, d2]``, which may be G, and returns the diagonal ``g [.., k]`` in float32."""
    return rescale_gradients([G], [SpectralBasis(U, S, Vh)], rho, [out_of_span], [out])[0]
