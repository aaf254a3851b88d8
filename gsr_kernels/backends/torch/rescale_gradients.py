"""The two-product form on the weights of one call."""

from collections.abc import Sequence

from torch import Tensor

from gsr_kernels.backends.torch.rescale_gradient import rescale_gradient
from gsr_kernels.basis import SpectralBasis


def rescale_gradients(
    gradients: Sequence[Tensor],
    bases: Sequence[SpectralBasis],
    rho: float,
    out_of_span: Sequence[str],
    outs: Sequence[Tensor],
) -> list[Tensor]:
    """``rescale_gradient`` on several weights, one after another; gradients and outs have the weights' own shapes."""
    return [
        rescale_gradient(basis.split(G), basis.U, basis.S, basis.Vh, rho, mode, basis.split(out))
        for G, basis, mode, out in zip(gradients, bases, out_of_span, outs)
    ]
