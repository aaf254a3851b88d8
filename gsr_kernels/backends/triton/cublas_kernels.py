# mypy: disallow-untyped-defs=False
"""The kernels around the products of cuBLAS, see ``cublas_plan``. Tables and constants are ``step_kernels``'s."""

import triton
import triton.language as tl

from gsr_kernels.backends.triton.adamw_kernels import GO, WIDTH, coefficients_of, kept, move
from gsr_kernels.backends.triton.fields import (
    D1,
    D2,
    DIAGONAL,
    FIELDS,
    FOLDED,
    G_STRIDE,
    OPERAND,
    OUT,
    OUT_STRIDE,
    PARTIALS,
    PRODUCT,
    RESULT,
    VH,
    G,
    K,
    U,
    address,
    number,
    sizes,
)
from gsr_kernels.backends.triton.tiles import (
    INTERPRETED,
    inverse,
    load_tile,
    power_of_two,
    reduce_tile,
    store_tile,
    tile_of,
)

# programs that share the rows of a matrix; the interpreter takes them one by one
SLICES = tl.constexpr(2 if INTERPRETED else 256)


@triton.jit(do_not_specialize=["start", "count"])
def convert(
    table, start, count, extremes, G_DTYPE: tl.constexpr, DTYPE: tl.constexpr, ALIGN: tl.constexpr, BLOCK: tl.constexpr
):
    """Write G as OPERAND [d1, d2] in the dtype of the basis, scaled to fit fp16."""
    scaled: tl.constexpr = tl.float16 == DTYPE and tl.float16 != G_DTYPE
    for index in tl.range(tl.program_id(0), count * SLICES, tl.num_programs(0)):
        matrix, first = start + index // SLICES, index - index // SLICES * SLICES
        p, stride = address(table, matrix, G, G_DTYPE, ALIGN), number(table, matrix, G_STRIDE, ALIGN)
        p_operand = address(table, matrix, OPERAND, DTYPE, ALIGN)
        d1, d2 = number(table, matrix, D1, 1), number(table, matrix, D2, ALIGN)
        scale = power_of_two(tl.load(extremes + matrix), 15) if scaled else 1.0
        offsets = tl.arange(0, BLOCK)
        for row in range(first, d1, SLICES):
            for column in range(0, d2, BLOCK):
                o, inside = column + offsets, offsets < d2 - column
                values = tl.load(p + row * stride.to(tl.int64) + o, mask=inside, other=0.0)
                if scaled:
                    values = values.to(tl.float32) * scale
                tl.store(p_operand + row * d2.to(tl.int64) + o, values.to(DTYPE), mask=inside)


@triton.jit(do_not_specialize=["start", "count", "scaled", "stored"])
def reduce_product(
    table, tiles, start, count, partials, extremes, scaled, stored,
    DTYPE: tl.constexpr, TRANSPOSED: tl.constexpr, ALIGN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Reduce the first product with the other factor to the sums of each tile; ``stored``, leave it without a scale."""
    for index in tl.range(start + tl.program_id(0), start + count, tl.num_programs(0)):
        matrix, row, column = tile_of(tiles, index, BM, BN)
        d1, d2, k = sizes(table, matrix, ALIGN)
        rows = d2 if TRANSPOSED else d1
        p_product = address(table, matrix, PRODUCT, tl.float32, ALIGN)
        p_x = address(table, matrix, VH if TRANSPOSED else U, DTYPE, ALIGN)
        p_sums = partials + tl.load(table + matrix * FIELDS + PARTIALS) + (row // BM) * k.to(tl.int64)
        # in strips, which fit the registers
        strip: tl.constexpr = BN // 4
        for at in range(column, column + BN, strip):
            product = load_tile(p_product, k, row, at, rows, k, BM, strip)
            if scaled != 0:
                product *= inverse(power_of_two(tl.load(extremes + matrix), 15))
                if stored != 0:
                    store_tile(p_product, k, row, at, rows, k, product, BM, strip)
            reduce_tile(product, p_x, p_sums, row, at, rows, k, d2, TRANSPOSED, BM, strip)


@triton.jit(do_not_specialize=["start", "count"])
def scale_factor(table, start, count, delta, DTYPE: tl.constexpr, ALIGN: tl.constexpr, BLOCK: tl.constexpr):
    """Write U diag(δ) as FOLDED [d1, k]."""
    for index in tl.range(tl.program_id(0), count * SLICES, tl.num_programs(0)):
        matrix, first = start + index // SLICES, index - index // SLICES * SLICES
        p_u, p_folded = address(table, matrix, U, DTYPE, ALIGN), address(table, matrix, FOLDED, DTYPE, ALIGN)
        p_delta = delta + tl.load(table + matrix * FIELDS + DIAGONAL)
        d1, k = number(table, matrix, D1, 1), number(table, matrix, K, ALIGN)
        offsets = tl.arange(0, BLOCK)
        for row in range(first, d1, SLICES):
            for column in range(0, k, BLOCK):
                o, inside = column + offsets, offsets < k - column
                shares = tl.load(p_delta + o, mask=inside, other=0.0)
                values = tl.load(p_u + row * k.to(tl.int64) + o, mask=inside, other=0.0).to(tl.float32)
                tl.store(p_folded + row * k.to(tl.int64) + o, (values * shares).to(DTYPE), mask=inside)


@triton.jit(do_not_specialize=["start", "count", "stored"])
def write_result(
    table, tiles, start, count, scales, finite, coefficients, stored,
    G_DTYPE: tl.constexpr, ALIGN: tl.constexpr,
    WEIGHT: tl.constexpr, MOMENT: tl.constexpr, COPIED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Finish the second product as ``step_kernels.second_product`` does."""
    for index in tl.range(start + tl.program_id(0), start + count, tl.num_programs(0)):
        matrix, row, column = tile_of(tiles, index, BM, BN)
        d1, d2, _ = sizes(table, matrix, ALIGN)
        ok = tl.load(finite + matrix) != 0
        p_result, scale = address(table, matrix, RESULT, tl.float32, ALIGN), inverse(tl.load(scales + matrix))
        p_g, g_stride = address(table, matrix, G, G_DTYPE, ALIGN), number(table, matrix, G_STRIDE, ALIGN)
        if WEIGHT is not None:
            ok = ok & (tl.load(coefficients + matrix * WIDTH + GO) != 0)
            state, loaded = kept(table, matrix, WEIGHT, MOMENT, COPIED, ALIGN), coefficients_of(coefficients, matrix)
        # nothing of a product with NaN in it: NaN times 0 would stay NaN
        rows = tl.where(ok, d1, 0)
        # how many rows of G stay under the product
        staying = d1 - tl.where(stored != 0, rows, 0)
        strip: tl.constexpr = BN // 8
        for at in range(column, column + BN, strip):
            result = load_tile(p_result, d2, row, at, rows, d2, BM, strip) * scale
            result += load_tile(p_g, g_stride, row, at, staying, d2, BM, strip).to(tl.float32)
            if WEIGHT is None:
                p_out = address(table, matrix, OUT, G_DTYPE, ALIGN)
                out_stride = number(table, matrix, OUT_STRIDE, ALIGN)
                store_tile(p_out, out_stride, row, at, d1, d2, result, BM, strip)
            else:
                # G is in the result
                move(
                    result, state, loaded, p_g, g_stride, row, at, rows, d2,
                    True, COPIED, ALIGN, BM, strip,
                )  # fmt: skip
