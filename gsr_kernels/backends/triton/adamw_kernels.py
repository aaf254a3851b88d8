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
from gsr_kernels.backends.triton.tiles import halves, load_tile, store_tile

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
def kept(table, matrix, WEIGHT: tl.constexpr, MOMENT: tl.constexpr, COPIED: tl.constexpr, ALIGN: tl.constexpr):
    """Return the addresses of a matrix's weight, moments and narrow copy, and the stride of all of them."""
    p_w = address(table, matrix, OUT, WEIGHT, ALIGN)
    p_m, p_v = address(table, matrix, FIRST_MOMENT, MOMENT, ALIGN), address(table, matrix, SECOND_MOMENT, MOMENT, ALIGN)
    p_copy = p_w if COPIED is None else address(table, matrix, COPY, COPIED, ALIGN)
    return p_w, p_m, p_v, p_copy, number(table, matrix, OUT_STRIDE, ALIGN)


@triton.jit
def coefficients_of(coefficients, matrix):
    """Return what ``prepare`` left for a matrix, in the order in which ``move`` takes it."""
    c = coefficients + matrix * WIDTH
    unscale, fresh1, beta, fresh2 = tl.load(c + UNSCALE), tl.load(c + FRESH1), tl.load(c + BETA), tl.load(c + FRESH2)
    rate, root, floor, decay = tl.load(c + RATE), tl.load(c + ROOT), tl.load(c + FLOOR), tl.load(c + DECAY)
    return unscale, fresh1, beta, fresh2, rate, root, floor, decay


@triton.jit
def adamw(
    tile, state, loaded, p_g, g_stride, row, column, rows, d2,
    STORED: tl.constexpr, COPIED: tl.constexpr, ALIGN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Apply AdamW (Loshchilov and Hutter 2019) to a tile of G' inside ``rows``. Without STORED it adds G first.

    ``state`` is what ``kept`` returns.
    """
    left, right = halves(tile, BM, BN)
    # eight strips, each of which waits for memory once
    for half in tl.static_range(2):
        quarters = halves(left if half == 0 else right, BM, BN // 2)
        for quarter in tl.static_range(2):
            strips = halves(quarters[quarter], BM, BN // 4)
            for strip in tl.static_range(2):
                at = column + (4 * half + 2 * quarter + strip) * (BN // 8)
                move(
                    strips[strip], state, loaded, p_g, g_stride, row, at, rows, d2,
                    STORED, COPIED, ALIGN, BM, BN // 8,
                )  # fmt: skip


@triton.jit
def move(
    g, state, loaded, p_g, g_stride, row, column, rows, d2,
    STORED: tl.constexpr, COPIED: tl.constexpr, ALIGN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Apply AdamW to a strip of G', see ``adamw``; ``loaded`` are the coefficients."""
    unscale, fresh1, beta, fresh2, rate, root, floor, decay = loaded
    p_w, p_m, p_v, p_copy, stride = state
    # what is loaded together travels together
    w = load_tile(p_w, stride, row, column, rows, d2, BM, BN)
    m = load_tile(p_m, stride, row, column, rows, d2, BM, BN)
    v = load_tile(p_v, stride, row, column, rows, d2, BM, BN)
    if not STORED:
        g += load_tile(p_g, g_stride, row, column, rows, d2, BM, BN).to(tl.float32)
    g *= unscale
    m, v, w = m.to(tl.float32), v.to(tl.float32), w.to(tl.float32)
    m += fresh1 * (g - m)
    v = beta * v + fresh2 * g * g
    w = w * decay - rate * m / (tl.sqrt(v) * root + floor)
    store_tile(p_m, stride, row, column, rows, d2, m, BM, BN)
    store_tile(p_v, stride, row, column, rows, d2, v, BM, BN)
    store_tile(p_w, stride, row, column, rows, d2, w, BM, BN)
    if COPIED is not None:
        # in vectors of 16 bytes it would have threads load 8 neighbours and store 4 of W and both moments: each would
        # change hands through shared memory. Inside, where G has 16 bits too, it costs more registers than there are
        store_tile(p_copy, stride, row, column, rows, d2, w, BM, BN, 4 if STORED else 0)


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
