# mypy: disallow-untyped-defs=False
"""The paper's stages as kernels. Between their products everything stays in float32.

Other dtypes are torch's to convert, so that each kernel is compiled once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from gsr_kernels.backends.triton.configurations import on, options
from gsr_kernels.backends.triton.product import product
from gsr_kernels.backends.triton.tiles import load_tile, load_transposed, store_tile
from gsr_kernels.reference import GAP

SIDE = 32


def project(G: Tensor, U: Tensor, Vh: Tensor) -> Tensor:
    """Compute ``reference.project``: ``G [.., d1, d2]``, ``U [.., d1, k]``, ``Vh [.., k, d2]`` -> ``N [.., k, k]``."""
    dtype = torch.promote_types(G.dtype, U.dtype)
    T = product(G, Vh.mT, torch.float32)
    return product(U.mT, T, dtype)


# a size of 1 would be compiled in, as an integer without a dtype
@triton.jit(do_not_specialize=["size"])
def turn(n, s, h, k, size, gap, SIDE: tl.constexpr):
    """H and K [batch, size, size] of N and S; grid (batch, tiles, tiles)."""
    batch = tl.program_id(0).to(tl.int64)
    row, column = tl.program_id(1) * SIDE, tl.program_id(2) * SIDE
    p_n = n + batch * size * size
    ahead = load_tile(p_n, size, row, column, size, size, SIDE, SIDE)
    mirror = load_transposed(p_n, size, row, column, size, size, SIDE, SIDE)
    o_row, o_column = row + tl.arange(0, SIDE), column + tl.arange(0, SIDE)
    s_row = tl.load(s + batch * size + o_row, mask=o_row < size, other=0.0)[:, None]
    s_column = tl.load(s + batch * size + o_column, mask=o_column < size, other=0.0)[None, :]

    # the difference of squares as a product: squaring first would cancel the digits of close values
    square = (s_column - s_row) * (s_column + s_row)
    larger = tl.maximum(s_row, s_column)
    tied = tl.abs(square) <= gap * larger * larger
    inverse = tl.where(tied, 0.0, tl.div_rn(1.0, tl.where(tied, 1.0, square)))
    turn_u = (s_column * ahead + s_row * mirror) * inverse
    turn_v = (s_column * mirror + s_row * ahead) * inverse
    store_tile(h + batch * size * size, size, row, column, size, size, turn_u, SIDE, SIDE)
    store_tile(k + batch * size * size, size, row, column, size, size, turn_v, SIDE, SIDE)


def skew(N: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """Compute ``reference.skew``, with the same ``GAP``: ``N [.., k, k]``, ``S [.., k]`` -> H, K in N's dtype."""
    dtype = N.dtype
    N, S = N.float().contiguous(), S.float().contiguous()
    H, K = torch.empty_like(N), torch.empty_like(N)
    size = N.shape[-1]
    if N.numel():
        tiles = triton.cdiv(size, SIDE)
        with on(N.device):
            turn[N.numel() // size**2, tiles, tiles](N, S, H, K, size, GAP, SIDE=SIDE, **options())
    return H.to(dtype), K.to(dtype)


@triton.jit(do_not_specialize=["size"])
def middle(h, g, k, s, out, size, SIDE: tl.constexpr):
    """H diag(S) + diag(g) + diag(S) Kᵀ [batch, size, size] in float32; grid (batch, tiles, tiles)."""
    batch = tl.program_id(0).to(tl.int64)
    row, column = tl.program_id(1) * SIDE, tl.program_id(2) * SIDE
    turn_u = load_tile(h + batch * size * size, size, row, column, size, size, SIDE, SIDE)
    turn_v = load_transposed(k + batch * size * size, size, row, column, size, size, SIDE, SIDE)
    o_row, o_column = row + tl.arange(0, SIDE), column + tl.arange(0, SIDE)
    s_row = tl.load(s + batch * size + o_row, mask=o_row < size, other=0.0)[:, None]
    s_column = tl.load(s + batch * size + o_column, mask=o_column < size, other=0.0)[None, :]
    diagonal = tl.load(g + batch * size + o_row, mask=o_row < size, other=0.0)[:, None]
    tile = turn_u * s_column + s_row * turn_v
    tile += tl.where(o_row[:, None] == o_column[None, :], diagonal, 0.0)
    store_tile(out + batch * size * size, size, row, column, size, size, tile, SIDE, SIDE)


def recompose(H: Tensor, g: Tensor, K: Tensor, U: Tensor, S: Tensor, Vh: Tensor) -> Tensor:
    """Compute ``reference.recompose`` of H, K ``[.., k, k]``, g, S ``[.., k]``, U, Vh -> G' in U's dtype."""
    H, g, K, S = (one.float().contiguous() for one in (H, g, K, S))
    size = S.shape[-1]
    core = torch.empty(H.shape, dtype=torch.float32, device=H.device)
    if core.numel():
        tiles = triton.cdiv(size, SIDE)
        with on(H.device):
            middle[core.numel() // size**2, tiles, tiles](H, g, K, S, core, size, SIDE=SIDE, **options())
    return product(product(U, core, torch.float32), Vh, U.dtype)
