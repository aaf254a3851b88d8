# mypy: disallow-untyped-defs=False
"""Equation (8): the middle matrix, and two products."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from gsr_kernels.backends.triton.configurations import on, options
from gsr_kernels.backends.triton.product import product
from gsr_kernels.backends.triton.tiles import load_tile, load_transposed, store_tile

SIDE = 32


# a size of 1 would be compiled in, as a number without a dtype
@triton.jit(do_not_specialize=["size"])
def middle(h, g, k, s, out, size, SIDE: tl.constexpr):
    """H diag(S) + diag(g) + diag(S) Kᵀ [batch, size, size] in float32; grid (tiles, tiles, batch)."""
    batch = tl.program_id(2).to(tl.int64)
    row, column = tl.program_id(0) * SIDE, tl.program_id(1) * SIDE
    turn_u = load_tile(h + batch * size * size, size, row, column, size, size, SIDE, SIDE).to(tl.float32)
    turn_v = load_transposed(k + batch * size * size, size, row, column, size, size, SIDE, SIDE).to(tl.float32)
    o_row, o_column = row + tl.arange(0, SIDE), column + tl.arange(0, SIDE)
    s_row = tl.load(s + batch * size + o_row, mask=o_row < size, other=0.0).to(tl.float32)[:, None]
    s_column = tl.load(s + batch * size + o_column, mask=o_column < size, other=0.0).to(tl.float32)[None, :]
    diagonal = tl.load(g + batch * size + o_row, mask=o_row < size, other=0.0).to(tl.float32)[:, None]
    tile = turn_u * s_column + s_row * turn_v
    tile += tl.where(o_row[:, None] == o_column[None, :], diagonal, 0.0)
    store_tile(out + batch * size * size, size, row, column, size, size, tile, SIDE, SIDE)


def recompose(H: Tensor, g: Tensor, K: Tensor, U: Tensor, S: Tensor, Vh: Tensor) -> Tensor:
    """``reference.recompose``: H, K ``[.., k, k]``, g, S ``[.., k]``, U ``[.., d1, k]``, Vh ``[.., k, d2]`` -> G' in
    U's dtype. Between the products everything stays in float32.
    """
    H, g, K, S = H.contiguous(), g.contiguous(), K.contiguous(), S.contiguous()
    size = S.shape[-1]
    core = torch.empty(H.shape, dtype=torch.float32, device=H.device)
    if core.numel():
        tiles = triton.cdiv(size, SIDE)
        with on(H.device):
            middle[tiles, tiles, core.numel() // size**2](H, g, K, S, core, size, SIDE=SIDE, **options())
    return product(product(U, core, torch.float32), Vh, U.dtype)
