# mypy: disallow-untyped-defs=False
"""AdamW where G' arises: its scalars, the update of one tile, and the counters of a step."""

import triton
import triton.language as tl

from gsr_kernels.backends.triton.fields import (
    COPY,
    FIRST_MOMENT,
    MATRICES,
    OUT,
    OUT_STRIDE,
    SECOND_MOMENT,
    SETTINGS,
    SKIPPED,
    STEP,
    address,
    number,
)
from gsr_kernels.backends.triton.tiles import load_tile, store_tile

# the columns of the settings, float64, a row a parameter group
LR, BETA1, BETA2, EPS, WEIGHT_DECAY = (tl.constexpr(i) for i in range(5))
GIVEN = tl.constexpr(5)
# what a gradient scaler says, float32
SCALE, FOUND_INF = tl.constexpr(0), tl.constexpr(1)
# the columns of the coefficients, float32, a row a matrix
GO, UNSCALE, FRESH1, BETA, FRESH2, RATE, ROOT, FLOOR, DECAY = (tl.constexpr(i) for i in range(9))
WIDTH = tl.constexpr(9)


@triton.jit
def _power(base, exponent):
    # by squaring, in float64: 1 - 0.999^t loses five digits of float32 at the first step
    result = base * 0 + 1
    for _ in range(31):
        result = tl.where(exponent & 1 == 1, result * base, result)
        base *= base
        exponent >>= 1
    return result


@triton.jit(do_not_specialize=["count"])
def prepare(table, count, settings, scaling, coefficients):
    """Compute the coefficients of every matrix for the next step, one program a matrix."""
    for matrix in tl.range(tl.program_id(0), count, tl.num_programs(0)):
        p = settings + number(table, matrix, SETTINGS, 1) * GIVEN
        lr, beta1, beta2 = tl.load(p + LR), tl.load(p + BETA1), tl.load(p + BETA2)
        step = tl.load(address(table, matrix, STEP, tl.float32, 1)).to(tl.int32) + 1
        c = coefficients + matrix * WIDTH
        tl.store(c + GO, tl.where(tl.load(scaling + FOUND_INF) == 0, 1.0, 0.0))
        tl.store(c + UNSCALE, 1 / tl.load(scaling + SCALE))
        tl.store(c + FRESH1, (1 - beta1).to(tl.float32))
        tl.store(c + BETA, beta2.to(tl.float32))
        tl.store(c + FRESH2, (1 - beta2).to(tl.float32))
        tl.store(c + RATE, (lr / (1 - _power(beta1, step))).to(tl.float32))
        tl.store(c + ROOT, (1 / tl.sqrt(1 - _power(beta2, step))).to(tl.float32))
        tl.store(c + FLOOR, tl.load(p + EPS).to(tl.float32))
        tl.store(c + DECAY, (1 - lr * tl.load(p + WEIGHT_DECAY)).to(tl.float32))


@triton.jit
def update(
    tile, table, matrix, coefficients, p_g, g_stride, row, column, rows, d2,
    STORED: tl.constexpr, WEIGHT: tl.constexpr, MOMENT: tl.constexpr, COPIED: tl.constexpr, ALIGN: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Apply AdamW (Loshchilov and Hutter 2019) to a tile of G' inside ``rows``. Without STORED it adds G first."""
    c = coefficients + matrix * WIDTH
    p_w, stride = address(table, matrix, OUT, WEIGHT, ALIGN), number(table, matrix, OUT_STRIDE, ALIGN)
    p_m = address(table, matrix, FIRST_MOMENT, MOMENT, ALIGN)
    p_v = address(table, matrix, SECOND_MOMENT, MOMENT, ALIGN)
    if not STORED:
        tile += load_tile(p_g, g_stride, row, column, rows, d2, BM, BN).to(tl.float32)
    tile *= tl.load(c + UNSCALE)
    m = load_tile(p_m, stride, row, column, rows, d2, BM, BN).to(tl.float32)
    m += tl.load(c + FRESH1) * (tile - m)
    store_tile(p_m, stride, row, column, rows, d2, m, BM, BN)
    v = load_tile(p_v, stride, row, column, rows, d2, BM, BN).to(tl.float32)
    v = tl.load(c + BETA) * v + tl.load(c + FRESH2) * tile * tile
    store_tile(p_v, stride, row, column, rows, d2, v, BM, BN)
    w = load_tile(p_w, stride, row, column, rows, d2, BM, BN).to(tl.float32)
    w = w * tl.load(c + DECAY) - tl.load(c + RATE) * m / (tl.sqrt(v) * tl.load(c + ROOT) + tl.load(c + FLOOR))
    store_tile(p_w, stride, row, column, rows, d2, w, BM, BN)
    if COPIED is not None:
        store_tile(address(table, matrix, COPY, COPIED, ALIGN), stride, row, column, rows, d2, w, BM, BN)


@triton.jit(do_not_specialize=["count"])
def finish(table, count, coefficients, finite):
    """Count, of every weight: a step if any matrix of it moved, and the matrices that were not finite."""
    for matrix in tl.range(tl.program_id(0), count, tl.num_programs(0)):
        matrices = number(table, matrix, MATRICES, 1)
        good = 0
        for i in range(matrix, matrix + matrices):
            good += tl.load(finite + i).to(tl.int32)
        if matrices > 0:
            go = tl.load(coefficients + matrix * WIDTH + GO)
            p_step = address(table, matrix, STEP, tl.float32, 1)
            tl.store(p_step, tl.load(p_step) + tl.where(good > 0, go, 0.0))
            p_skipped = address(table, matrix, SKIPPED, tl.int64, 1)
            tl.store(p_skipped, tl.load(p_skipped) + (matrices - good).to(tl.int64))
