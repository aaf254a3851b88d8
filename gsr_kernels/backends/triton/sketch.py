# mypy: disallow-untyped-defs=False
"""The sketch ``Y = W Ω`` with Ω drawn where it is used: never stored, and the same for every tile size."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from gsr_kernels.backends.torch import sketch as plain
from gsr_kernels.backends.triton.configurations import on
from gsr_kernels.backends.triton.tiles import load_tile, store_tile

SPARSITY = tl.constexpr(plain.SPARSITY)
SIZE = tl.constexpr(plain.SPARSITY**0.5)
LN_2 = tl.constexpr(plain.LN_2)
LOG = tl.constexpr(plain.LOG)
SINE = tl.constexpr(plain.SINE)
LOGS, SINES = tl.constexpr(len(plain.LOG)), tl.constexpr(len(plain.SINE))

TILE = {"BM": 128, "BN": 64, "BK": 16}
# a fused multiply-add would round Ω otherwise than the other devices do; with 4 warps it spills
OPTIONS = {"num_warps": 8, "num_stages": 3, "enable_fp_fusion": False}


@triton.jit
def _polynomial(x, COEFFICIENTS: tl.constexpr, COUNT: tl.constexpr):
    value = x * 0.0 + COEFFICIENTS[0]
    for i in tl.static_range(1, COUNT):
        value = value * x + COEFFICIENTS[i]
    return value


@triton.jit
def _rounded(x):
    return ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)


@triton.jit
def _normal(first, second):
    bits = (((first >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07).to(tl.int32, bitcast=True)
    mantissa = ((bits & 0x7FFFFF) | 0x3F800000).to(tl.float32, bitcast=True) - 1.0
    log = ((bits >> 23) - 127).to(tl.float32) * LN_2 + mantissa * _polynomial(mantissa, LOG, LOGS)
    radius = tl.sqrt_rn(tl.maximum(log * -2.0, 0.0))
    sine = ((second >> 11).to(tl.float32) + 0.5) * 4.76837158203125e-07
    cosine = 1.0 - sine
    cosine = radius * (cosine * _polynomial(cosine * cosine, SINE, SINES))
    sine = radius * (sine * _polynomial(sine * sine, SINE, SINES))
    return (
        _rounded(tl.where((second & 1) > 0, -cosine, cosine)),
        _rounded(tl.where((second & 2) > 0, -sine, sine)),
    )


@triton.jit
def _sign(word, column):
    size = tl.where((word & SPARSITY) > 0, SIZE, -SIZE)
    return tl.where((word % SPARSITY).to(tl.int32) == column % SPARSITY, size, 0.0)


@triton.jit
def omega(seed, row, column, SPARSE: tl.constexpr):
    """Return the elements of Ω at a row of each quarter, [BK, 1], and a column, [1, BN]: four tiles [BK, BN]."""
    c0, c1 = tl.broadcast(row, column // SPARSITY if SPARSE else column)
    a, b, c, d = tl.philox(seed, c0, c1, c0 * 0, c0 * 0)
    if SPARSE:
        return _sign(a, column), _sign(b, column), _sign(c, column), _sign(d, column)
    first, second = _normal(a, b)
    third, fourth = _normal(c, d)
    return first, second, third, fourth


@triton.jit
def _add_quarter(
    y, p_w, n, row, step, number, rows, quarter, part,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    start = number * quarter
    w = load_tile(p_w, n, row, start + step, rows, tl.minimum(start + quarter, n), BM, BK)
    w = w.to(tl.float32)
    # Ω fits TF32 as it is; W takes two parts, without which the small directions of a decaying spectrum would drown
    high = (w.to(tl.int32, bitcast=True) & -0x2000).to(tl.float32, bitcast=True)
    y = tl.dot(w - high, part, y, input_precision="tf32")
    return tl.dot(high, part, y, input_precision="tf32")


# sizes and seeds that are compiled in would make a kernel for every kind of them
# a seed of one width: small and large ones are one kernel
@triton.jit(do_not_specialize=["rows", "n", "width", "seed"])
def sketch_kernel(
    p_w, p_y, rows, n, width, seed: tl.int64, SPARSE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Compute Y [rows, width] = W [rows, n] Ω, one program a tile. Ω as in the torch backend: see its ``omega``."""
    row, column = tl.program_id(0) * BM, tl.program_id(1) * BN
    o_column = (column + tl.arange(0, BN))[None, :]
    quarter = tl.cdiv(n, 4)
    y = tl.zeros([BM, BN], tl.float32)
    for step in range(0, quarter, BK):
        o_row = (step + tl.arange(0, BK))[:, None]
        first, second, third, fourth = omega(seed, o_row, o_column, SPARSE)
        y = _add_quarter(y, p_w, n, row, step, 0, rows, quarter, first, BM, BN, BK)
        y = _add_quarter(y, p_w, n, row, step, 1, rows, quarter, second, BM, BN, BK)
        y = _add_quarter(y, p_w, n, row, step, 2, rows, quarter, third, BM, BN, BK)
        y = _add_quarter(y, p_w, n, row, step, 3, rows, quarter, fourth, BM, BN, BK)
    store_tile(p_y, width, row, column, rows, width, y, BM, BN)


def sketch(W: Tensor, width: int, seed: int, kind: str, tile: dict[str, int] | None = None) -> Tensor:
    """Compute ``Y [.., m, width] = W [.., m, n] Ω [n, width]`` in float32 for a W of any float dtype up to that."""
    tile = tile or TILE
    # a batch is one matrix of many rows
    flat = W.contiguous().view(-1, W.shape[-1])
    Y = torch.empty(len(flat), width, dtype=torch.float32, device=W.device)
    grid = (triton.cdiv(len(flat), tile["BM"]), triton.cdiv(width, tile["BN"]))
    sparse = kind == "sparse"
    with on(W.device):
        sketch_kernel[grid](flat, Y, *flat.shape, width, seed, SPARSE=sparse, **tile, **OPTIONS)
    return Y.view(*W.shape[:-1], width)
