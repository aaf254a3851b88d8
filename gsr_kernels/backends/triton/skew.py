# mypy: disallow-untyped-defs=False
"""Equation (3), tile by tile: a program reads the tile of N and its mirror image once and writes H and K."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from gsr_kernels.backends.triton.configurations import on, options
from gsr_kernels.backends.triton.tiles import load_tile, load_transposed, store_tile
from gsr_kernels.reference import GAP

SIDE = 32


# a size of 1 would be compiled in, as a number without a dtype
@triton.jit(do_not_specialize=["size"])
def turn(n, s, h, k, size, gap, SIDE: tl.constexpr):
    """H and K [batch, size, size] of N and S; grid (tiles, tiles, batch)."""
    batch = tl.program_id(2).to(tl.int64)
    row, column = tl.program_id(0) * SIDE, tl.program_id(1) * SIDE
    p_n = n + batch * size * size
    ahead = load_tile(p_n, size, row, column, size, size, SIDE, SIDE).to(tl.float32)
    mirror = load_transposed(p_n, size, row, column, size, size, SIDE, SIDE).to(tl.float32)
    o_row, o_column = row + tl.arange(0, SIDE), column + tl.arange(0, SIDE)
    s_row = tl.load(s + batch * size + o_row, mask=o_row < size, other=0.0).to(tl.float32)[:, None]
    s_column = tl.load(s + batch * size + o_column, mask=o_column < size, other=0.0).to(tl.float32)[None, :]

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
    """``reference.skew`` in float32, with the same ``GAP``: ``N [.., k, k]``, ``S [.., k]`` -> H, K in N's dtype."""
    N, S = N.contiguous(), S.contiguous()
    H, K = torch.empty_like(N), torch.empty_like(N)
    size = N.shape[-1]
    if N.numel():
        tiles = triton.cdiv(size, SIDE)
        with on(N.device):
            turn[tiles, tiles, N.numel() // size**2](N, S, H, K, size, GAP, SIDE=SIDE, **options())
    return H, K
