# mypy: disallow-untyped-defs=False
"""The kernels of the fused step. Each walks the tiles of a whole group of matrices with a persistent grid.

A matrix is a row of ``table``, see ``fields``. A tile is a row of ``tiles``, int32: matrix, and its index among the
tiles of that matrix.
TRANSPOSED: Gᵀ is multiplied. STORED: the first product is kept, for what is outside the span is dropped; ``stored`` and
``transposed`` say so where both are one kernel. ALIGN divides
strides, d2 and k; where it is above 1 all addresses are multiples of 16 bytes.
"""

import inspect

import triton
import triton.language as tl

from gsr_kernels.backends.triton.adamw_kernels import GO, WIDTH, adamw, coefficients_of, kept
from gsr_kernels.backends.triton.fields import (
    D1,
    D2,
    DIAGONAL,
    FIELDS,
    FOLDED,
    G_STRIDE,
    OUT,
    OUT_STRIDE,
    PARTIALS,
    PARTS,
    PRODUCT,
    VH,
    G,
    S,
    U,
    address,
    number,
    sizes,
)
from gsr_kernels.backends.triton.rescale import rescale_row
from gsr_kernels.backends.triton.tiles import (
    INTERPRETED,
    dot,
    halves,
    inverse,
    load_factor,
    load_tile,
    load_transposed,
    power_of_two,
    reduce_tile,
    store_tile,
    tile_of,
    widened,
)

# Triton 3.4 takes out of every loop what does not change in it
HOISTS = tl.constexpr("disable_licm" not in inspect.signature(tl.range).parameters)
# programs that look for the largest magnitude of a matrix; the interpreter takes them one by one
PIECES = tl.constexpr(4 if INTERPRETED else 64)


@triton.jit(do_not_specialize=["start", "count"])
def largest(table, start, count, extremes, G_DTYPE: tl.constexpr, ALIGN: tl.constexpr, BLOCK: tl.constexpr):
    """Raise extremes to max |G| of the matrices [start, start + count), so that fp16 operands can be scaled to fit."""
    for index in tl.range(tl.program_id(0), count * PIECES, tl.num_programs(0)):
        matrix, piece = start + index // PIECES, index - index // PIECES * PIECES
        p, stride = address(table, matrix, G, G_DTYPE, ALIGN), number(table, matrix, G_STRIDE, ALIGN)
        d1, d2 = number(table, matrix, D1, 1), number(table, matrix, D2, ALIGN)
        offsets = tl.arange(0, BLOCK)
        most = tl.zeros([BLOCK], tl.float32)
        for row in range(piece, d1, PIECES):
            p_row = p + row * stride.to(tl.int64)
            for column in range(0, d2, BLOCK):
                values = tl.load(p_row + column + offsets, mask=offsets < d2 - column, other=0.0)
                most = tl.maximum(most, tl.abs(values.to(tl.float32)))
        # of a maximum, unlike a sum, the order does not matter
        tl.atomic_max(extremes + matrix, tl.max(most, 0), sem="relaxed")


@triton.jit(do_not_specialize=["start", "count", "stored"])
def first_product(
    table, tiles, start, count, partials, extremes, stored,
    G_DTYPE: tl.constexpr, DTYPE: tl.constexpr, TRANSPOSED: tl.constexpr, ALIGN: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """G V, reduced with U to g = diag(Uᵀ G V); or Gᵀ U, reduced with V. A tile is BM rows and BN of the k directions.

    Its sums over rows go to partials [row tiles, k], to rows of their own: no atomics. With TMA, which takes aligned
    matrices alone, tiles come by descriptors that are made here.
    """
    scaled: tl.constexpr = tl.float16 == DTYPE and tl.float16 != G_DTYPE
    for index in tl.range(start + tl.program_id(0), start + count, tl.num_programs(0)):
        matrix, row, column = tile_of(tiles, index, BM, BN)
        d1, d2, k = sizes(table, matrix, ALIGN)
        p_g, stride = address(table, matrix, G, G_DTYPE, ALIGN), number(table, matrix, G_STRIDE, ALIGN)
        p_factor = address(table, matrix, U if TRANSPOSED else VH, DTYPE, ALIGN)
        rows, depth = (d2, d1) if TRANSPOSED else (d1, d2)

        if scaled:
            # loaded as a vector: past a scalar the layout of the operand is not hoisted, and G takes a detour
            scale = power_of_two(tl.load(extremes + matrix + tl.zeros([BM], tl.int32)), 15)[:, None]

        accumulator = tl.zeros([BM, BN], tl.float32)
        o_m, o_n, o_k = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, BK)
        # where the depth ends, at once for what is outside: one comparison an entry and step
        g_end, factor_end = tl.where(o_m < rows - row, depth, 0), tl.where(o_n < k - column, depth, 0)
        if TMA and TRANSPOSED:
            g_tiles = tl.make_tensor_descriptor(p_g, [d1, d2], [stride.to(tl.int64), 1], [BK, BM])
            factor_tiles = tl.make_tensor_descriptor(p_factor, [d1, k], [k.to(tl.int64), 1], [BK, BN])
        elif TMA:
            g_tiles = tl.make_tensor_descriptor(p_g, [d1, d2], [stride.to(tl.int64), 1], [BM, BK])
            factor_tiles = tl.make_tensor_descriptor(p_factor, [k, d2], [d2.to(tl.int64), 1], [BN, BK])
        elif TRANSPOSED:
            p_g, p_factor = p_g + row, p_factor + column
            g_offsets, g_stride = o_m[:, None] + o_k[None, :] * stride, stride.to(tl.int64)
            factor_offsets, factor_stride = o_k[:, None] * k + o_n[None, :], k.to(tl.int64)
        else:
            p_g, p_factor = p_g + row * stride.to(tl.int64), p_factor + column * d2.to(tl.int64)
            g_offsets, g_stride = o_m[:, None] * stride + o_k[None, :], 1
            factor_offsets, factor_stride = o_k[:, None] + o_n[None, :] * d2, 1
        for step in range(0, depth, BK):
            if TMA and TRANSPOSED:
                g, factor = g_tiles.load([step, row]).T, factor_tiles.load([step, column])
            elif TMA:
                g, factor = g_tiles.load([row, step]), factor_tiles.load([column, step]).T
            else:
                # by the hint Triton 3.9 knows of vectors along the depth, too
                g_left, factor_left = tl.multiple_of(g_end - step, ALIGN), tl.multiple_of(factor_end - step, ALIGN)
                g = tl.load(p_g + g_offsets, mask=o_k[None, :] < g_left[:, None], other=0.0)
                factor = tl.load(p_factor + factor_offsets, mask=o_k[:, None] < factor_left[None, :], other=0.0)
                # origins that move: a product with a stride at each step would take instructions
                p_g += BK * g_stride
                p_factor += BK * factor_stride
            if scaled:
                g = widened(g) * scale
            accumulator = dot(g.to(DTYPE), factor, accumulator)

        if scaled:
            accumulator *= inverse(power_of_two(tl.load(extremes + matrix), 15))
        if stored != 0:
            p_product = address(table, matrix, PRODUCT, tl.float32, ALIGN)
            store_tile(p_product, k, row, column, rows, k, accumulator, BM, BN)
        p_x = address(table, matrix, VH if TRANSPOSED else U, DTYPE, ALIGN)
        p_sums = partials + tl.load(table + matrix * FIELDS + PARTIALS) + (row // BM) * k.to(tl.int64)
        if TMA:
            left, right = halves(accumulator, BM, BN)
            reduce_halves(left, p_x, p_sums, row, column, rows, k, d2, TRANSPOSED, BM, BN // 2)
            reduce_halves(right, p_x, p_sums, row, column + BN // 2, rows, k, d2, TRANSPOSED, BM, BN // 2)
        else:
            reduce_halves(accumulator, p_x, p_sums, row, column, rows, k, d2, TRANSPOSED, BM, BN)


@triton.jit
def reduce_halves(
    product, p_x, p_sums, row, column, rows, k, d2, TRANSPOSED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr
):
    """Reduce both halves of a tile: the whole of it does not fit the registers."""
    left, right = halves(product, BM, BN)
    reduce_tile(left, p_x, p_sums, row, column, rows, k, d2, TRANSPOSED, BM, BN // 2)
    reduce_tile(right, p_x, p_sums, row, column + BN // 2, rows, k, d2, TRANSPOSED, BM, BN // 2)


@triton.jit(do_not_specialize=["start", "count", "transposed", "stored"])
def rescale_all(
    table, start, count, partials, extremes, g, delta, scales, finite, rho, floor, transposed, stored,
    DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add the partial sums to g in their order, and rescale: one program a matrix.

    Leave δ times the power of two in ``scales`` with which the left operand of the second product fits DTYPE. Where g
    is not finite, δ is 0 and ``finite`` is false.
    """
    for matrix in tl.range(start + tl.program_id(0), start + count, tl.num_programs(0)):
        d1, d2, k = sizes(table, matrix, 1)
        begin = tl.load(table + matrix * FIELDS + DIAGONAL)
        p_partials = partials + tl.load(table + matrix * FIELDS + PARTIALS)
        p_s, parts = address(table, matrix, S, tl.float32, 1), number(table, matrix, PARTS, 1)
        ok, most = rescale_row(p_partials, parts, k, p_s, tl.load(rho), floor, g + begin, delta + begin, True, BLOCK)
        scale = tl.where(ok, 1.0, 1.0)
        if tl.float16 == DTYPE:
            if stored != 0:
                # an element of the first product is at most the norm of one row of what is multiplied
                depth = tl.where(transposed != 0, d1, d2)
                most += tl.sqrt(depth.to(tl.float32)) * tl.load(extremes + matrix)
            scale = tl.where(ok, power_of_two(most, 15), 1.0)
            tl.debug_barrier()
            for column in range(0, k, BLOCK):
                o = column + tl.arange(0, BLOCK)
                shares = tl.load(delta + begin + o, mask=o < k, other=0.0) * scale
                tl.store(delta + begin + o, shares, mask=o < k)
        tl.store(scales + matrix, scale)
        tl.store(finite + matrix, ok)


@triton.jit(do_not_specialize=["start", "count"])
def fold(
    table, tiles, start, count, delta, scales,
    DTYPE: tl.constexpr, TRANSPOSED: tl.constexpr, ALIGN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """δ into the stored product, G V + U diag(δ) or Gᵀ U + V diag(δ), rounded once to DTYPE."""
    for index in tl.range(start + tl.program_id(0), start + count, tl.num_programs(0)):
        matrix, row, column = tile_of(tiles, index, BM, BN)
        d1, d2, k = sizes(table, matrix, ALIGN)
        rows = d2 if TRANSPOSED else d1
        p_product = address(table, matrix, PRODUCT, tl.float32, ALIGN)
        p_x = address(table, matrix, VH if TRANSPOSED else U, DTYPE, ALIGN)
        p_folded = address(table, matrix, FOLDED, DTYPE, ALIGN)
        p_delta = delta + tl.load(table + matrix * FIELDS + DIAGONAL)
        scale = tl.load(scales + matrix)
        # in strips: a whole tile of two operands with a mask an entry does not fit the registers
        strip: tl.constexpr = BN // 4
        for at in range(column, column + BN, strip):
            o = at + tl.arange(0, strip)
            shares = tl.load(p_delta + o, mask=o < k, other=0.0)
            product = load_tile(p_product, k, row, at, rows, k, BM, strip)
            x = load_factor(p_x, row, at, rows, k, d2, TRANSPOSED, BM, strip)
            store_tile(p_folded, k, row, at, rows, k, product * scale + x * shares[None, :], BM, strip)


@triton.jit(do_not_specialize=["start", "count"])
def second_product(
    table, tiles, start, count, delta, scales, finite, coefficients,
    G_DTYPE: tl.constexpr, DTYPE: tl.constexpr, TRANSPOSED: tl.constexpr, STORED: tl.constexpr, ALIGN: tl.constexpr,
    WEIGHT: tl.constexpr, MOMENT: tl.constexpr, COPIED: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """G' = G + (U diag(δ)) Vh; or, from the folded product F, G' = F Vh or U Fᵀ. Where g was not finite, G' = G.

    A tile reads of G only its own entries, so that G' may be written over G. With dtypes for WEIGHT and MOMENT it is
    not written: AdamW takes it, and leaves a weight alone where g was not finite.
    """
    first, end, step = start + tl.program_id(0), start + count, tl.num_programs(0)
    if STORED or HOISTS:
        for index in tl.range(first, end, step):
            second_tile(
                index, table, tiles, delta, scales, finite, coefficients,
                G_DTYPE, DTYPE, TRANSPOSED, STORED, ALIGN, WEIGHT, MOMENT, COPIED, BM, BN, BK,
            )  # fmt: skip
    else:
        # the epilogue's indices stay out of registers that its loads need
        for index in tl.range(first, end, step, disable_licm=True):
            second_tile(
                index, table, tiles, delta, scales, finite, coefficients,
                G_DTYPE, DTYPE, TRANSPOSED, STORED, ALIGN, WEIGHT, MOMENT, COPIED, BM, BN, BK,
            )  # fmt: skip


@triton.jit
def second_tile(
    index, table, tiles, delta, scales, finite, coefficients,
    G_DTYPE: tl.constexpr, DTYPE: tl.constexpr, TRANSPOSED: tl.constexpr, STORED: tl.constexpr, ALIGN: tl.constexpr,
    WEIGHT: tl.constexpr, MOMENT: tl.constexpr, COPIED: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Compute one tile of ``second_product``."""
    matrix, row, column = tile_of(tiles, index, BM, BN)
    d1, d2, k = sizes(table, matrix, ALIGN)
    ok = tl.load(finite + matrix) != 0
    if WEIGHT is not None:
        ok = ok & (tl.load(coefficients + matrix * WIDTH + GO) != 0)
        state = kept(table, matrix, WEIGHT, MOMENT, COPIED, ALIGN)
        loaded = coefficients_of(coefficients, matrix)
    p_left = address(table, matrix, FOLDED if STORED and not TRANSPOSED else U, DTYPE, ALIGN)
    p_right = address(table, matrix, FOLDED if STORED and TRANSPOSED else VH, DTYPE, ALIGN)
    p_delta = delta + tl.load(table + matrix * FIELDS + DIAGONAL)
    # scalars come before the product: after it a tile would wait for them once more
    scale = inverse(tl.load(scales + matrix))
    p_g, g_stride = address(table, matrix, G, G_DTYPE, ALIGN), number(table, matrix, G_STRIDE, ALIGN)

    accumulator = tl.zeros([BM, BN], tl.float32)
    # no step at all where g was not finite: NaN times 0 would stay NaN
    for step in range(0, tl.where(ok, k, 0), BK):
        left = load_tile(p_left, k, row, step, d1, k, BM, BK)
        if STORED and TRANSPOSED:
            right = load_transposed(p_right, k, step, column, k, d2, BK, BN)
        else:
            right = load_tile(p_right, d2, step, column, k, d2, BK, BN)
        if not STORED:
            o = step + tl.arange(0, BK)
            shares = tl.load(p_delta + o, mask=o < k, other=0.0)
            left = (left.to(tl.float32) * shares[None, :]).to(DTYPE)
        accumulator = dot(left, right, accumulator)

    accumulator *= scale
    if WEIGHT is None:
        left, right = halves(accumulator, BM, BN)
        p_out, out_stride = address(table, matrix, OUT, G_DTYPE, ALIGN), number(table, matrix, OUT_STRIDE, ALIGN)
        # how many rows of G stay under the product
        staying = tl.where(ok, 0, d1) if STORED else d1
        add_tile(left, p_g, g_stride, p_out, out_stride, row, column, d1, d2, staying, BM, BN // 2)
        add_tile(right, p_g, g_stride, p_out, out_stride, row, column + BN // 2, d1, d2, staying, BM, BN // 2)
    else:
        adamw(
            accumulator, state, loaded, p_g, g_stride, row, column, tl.where(ok, d1, 0), d2,
            STORED, COPIED, ALIGN, BM, BN,
        )  # fmt: skip


@triton.jit
def add_tile(tile, p_g, g_stride, p_out, out_stride, row, column, d1, d2, staying, BM: tl.constexpr, BN: tl.constexpr):
    """Write a tile of G' = product + G, of which ``staying`` rows stay."""
    base = load_tile(p_g, g_stride, row, column, staying, d2, BM, BN)
    store_tile(p_out, out_stride, row, column, d1, d2, tile + base.to(tl.float32), BM, BN)
