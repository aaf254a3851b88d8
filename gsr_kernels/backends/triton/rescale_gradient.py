"""The fused step on one weight, and where its products go when no kernel of the step takes them."""

from torch import Tensor

from gsr_kernels.backends.torch.rescale_gradient import rescale_gradient as by_cublas
from gsr_kernels.backends.triton.plan import Plan, served
from gsr_kernels.basis import SpectralBasis


def rescale_gradient(G: Tensor, U: Tensor, S: Tensor, Vh: Tensor, rho: float, out_of_span: str, out: Tensor) -> Tensor:
    """Writes G' to ``out [.., d1, d2]``, which may be G, and returns the diagonal ``g [.., k]`` in float32.

    What ``precision.PRODUCTS`` gives to cuBLAS, and a truncated basis with out_of_span="drop", is computed by torch.
    The tables are built anew at each call: a training loop keeps a ``Plan``.
    """
    basis = SpectralBasis(U.contiguous(), S.float().contiguous(), Vh.contiguous())
    if not G.numel() or not served(basis, G.dtype, out_of_span):
        return by_cublas(G, U, S, Vh, rho, out_of_span, out)
    plan = Plan([basis], [G.dtype], rho, [out_of_span])
    plan.run([G], [out])
    return plan.g[0]
