"""Three projections of a gradient on singular subspaces, and the dtype that they are computed in.

``U [.., d1, k]`` and ``Vh [.., k, d2]`` have orthonormal columns and rows: some of a weight's singular directions.
"""

import torch
from torch import Tensor

from gsr_kernels.basis import SpectralBasis


def operands(G: Tensor, basis: SpectralBasis) -> tuple[Tensor, Tensor, Tensor]:
    """``(G, U, Vh)`` in the wider dtype of G and the basis, at least float32 on a CPU."""
    dtype = torch.promote_types(G.dtype, basis.U.dtype)
    if G.device.type == "cpu":
        dtype = torch.promote_types(dtype, torch.float32)
    return G.to(dtype), basis.U.to(dtype), basis.Vh.to(dtype)


def keep_block(G: Tensor, U: Tensor, Vh: Tensor) -> Tensor:
    """``U Uᵀ G V Vᵀ``: nothing but the block of these directions."""
    return U @ ((U.mT @ G @ Vh.mT) @ Vh)


def remove_block(G: Tensor, U: Tensor, Vh: Tensor) -> Tensor:
    """``G − U Uᵀ G V Vᵀ``: everything but the block of these directions."""
    return G - keep_block(G, U, Vh)


def complement(G: Tensor, U: Tensor, Vh: Tensor) -> Tensor:
    """``(I − U Uᵀ) G (I − V Vᵀ)``: what no column of U and no row of Vh touches."""
    G = G - U @ (U.mT @ G)
    return G - (G @ Vh.mT) @ Vh
