# mypy: disallow-untyped-defs=False
"""The sketch ``Y = W Ω`` with Ω drawn where it is used: never stored, and the same for every tile size."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from gsr_kernels.backends.torch import sketch as plain
from gsr_kernels.backends.triton.tiles import load_tile, store_tile

SPARSITY = tl.constexpr(plain.SPARSITY)
SIZE = tl.constexpr(plain.SPARSITY**0.5)

TILE = {"BM": 64, "BN": 64, "BK": 32}
OPTIONS = {"num_warps": 4, "num_stages": 3}


@triton.jit
def _normal(first, second):
    # 23 bits and a half: exact in float32 and never 0
    u = ((first >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07
    v = ((second >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07
    radius, angle = tl.sqrt_rn(-2.0 * tl.log(u)), 6.283185307179586 * v
    return radius * tl.cos(angle), radius * tl.sin(angle)


@triton.jit
def _sign(word, column):
    size = tl.where((word & SPARSITY) > 0, SIZE, -SIZE)
    return tl.where((word % SPARSITY).to(tl.int32) == column % SPARSITY, size, 0.0)


@triton.jit
def omega(seed, row, column, SPARSE: tl.constexpr):
    """The entries of Ω at a row of each quarter, [BK, 1], and a column, [1, BN]: four tiles [BK, BN]."""
    c0, c1 = tl.broadcast(row, column // SPARSITY if SPARSE else column)
    a, b, c, d = tl.philox(seed, c0, c1, c0 * 0, c0 * 0)
    if SPARSE:
        return _sign(a, column), _sign(b, column), _sign(c, column), _sign(d, column)
    first, second = _normal(a, b)
    third, fourth = _normal(c, d)
    return first, second, third, fourth


@triton.jit
def _add_quarter(
    accumulator, p_w, n, row, step, number, rows, quarter, part, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    start = number * quarter
    w = load_tile(p_w, tl.to_tensor(n), row, start + step, rows, tl.minimum(start + quarter, n), BM, BK)
    return tl.dot(w.to(tl.float32), part, accumulator, input_precision=PRECISION)


@triton.jit
def sketch_kernel(
    p_w, p_y, rows, n, width, seed, SPARSE: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Y [rows, width] = W [rows, n] Ω, one program a tile. Ω as in the torch backend: see its ``omega``."""
    row, column = tl.program_id(0) * BM, tl.program_id(1) * BN
    o_column = (column + tl.arange(0, BN))[None, :]
    quarter = tl.cdiv(n, 4)
    y = tl.zeros([BM, BN], tl.float32)
    for step in range(0, quarter, BK):
        o_row = (step + tl.arange(0, BK))[:, None]
        first, second, third, fourth = omega(seed, o_row, o_column, SPARSE)
        y = _add_quarter(y, p_w, n, row, step, 0, rows, quarter, first, PRECISION, BM, BN, BK)
        y = _add_quarter(y, p_w, n, row, step, 1, rows, quarter, second, PRECISION, BM, BN, BK)
        y = _add_quarter(y, p_w, n, row, step, 2, rows, quarter, third, PRECISION, BM, BN, BK)
        y = _add_quarter(y, p_w, n, row, step, 3, rows, quarter, fourth, PRECISION, BM, BN, BK)
    store_tile(p_y, tl.to_tensor(width), row, column, rows, width, y, BM, BN)


def sketch(W: Tensor, width: int, seed: int, kind: str, tile: dict[str, int] | None = None) -> Tensor:
    """``Y [.., m, width] = W [.., m, n] Ω [n, width]`` in float32 for a W of any float dtype up to that.

    Products are tf32x3: a range finder in plain TF32 would lose the small directions of a decaying spectrum.
    """
    tile = tile or TILE
    # a batch is one matrix of many rows
    flat = W.contiguous().view(-1, W.shape[-1])
    Y = torch.empty(len(flat), width, dtype=torch.float32, device=W.device)
    grid = (triton.cdiv(len(flat), tile["BM"]), triton.cdiv(width, tile["BN"]))
    sparse = kind == "sparse"
    sketch_kernel[grid](flat, Y, *flat.shape, width, seed, SPARSE=sparse, PRECISION="tf32x3", **tile, **OPTIONS)
    return Y.view(*W.shape[:-1], width)
