"""The truth in float64, on the operands as stored, and how far a result may be from it."""

import torch
from torch import Tensor

from gsr_kernels import SpectralBasis, ops, reference


def diagonal(G: Tensor, U: Tensor, Vh: Tensor) -> Tensor:
    """g [.., k] in the dtype given."""
    return reference.project(G, U, Vh).diagonal(dim1=-2, dim2=-1)


def two_products(G: Tensor, g: Tensor, U: Tensor, S: Tensor, Vh: Tensor, rho: float, out_of_span: str) -> Tensor:
    """G' from G and a given g, written plainly in the dtype given: right for tied singular values too.

    A whole square factor is orthonormal on both sides; its product with itself is left out, since as stored it is the
    identity to a rounding only.
    """
    delta = reference.rescale(g, S, rho) - g
    inside = G
    if out_of_span == "drop" and U.shape[-1] < U.shape[-2]:
        inside = U @ (U.mT @ inside)
    if out_of_span == "drop" and Vh.shape[-2] < Vh.shape[-1]:
        inside = inside @ Vh.mT @ Vh
    return inside + (U * delta.unsqueeze(-2)) @ Vh


def double(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.double() for tensor in tensors)


def error(result: Tensor, truth: Tensor) -> float:
    """Relative error, Frobenius norm; a NaN anywhere is a NaN."""
    norm = torch.linalg.vector_norm(truth.double())
    distance = torch.linalg.vector_norm(result.double() - truth.double())
    return (distance / norm if norm > 0 else distance).item()


def assert_as_good(result: Tensor, truth: Tensor, same_in_torch: Tensor, floor: float | None = None) -> None:
    """The result is at most twice as far from the truth as torch's own in the same dtype, or within a rounding."""
    allowed = max(2 * error(same_in_torch, truth), torch.finfo(result.dtype).eps if floor is None else floor)
    assert error(result, truth) <= allowed, f"{error(result, truth):.2e} > {allowed:.2e}"


def by_triton(G, basis, rho, out_of_span, out, backend="triton"):
    """g of one weight's matrices, whose G' goes to out: the kernels', or torch's where they do not support them."""
    matrices = SpectralBasis(basis.U, basis.S, basis.Vh)
    return ops.rescale_gradients([G], [matrices], rho, [out_of_span], [out], backend)[0]
