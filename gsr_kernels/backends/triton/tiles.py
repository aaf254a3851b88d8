# mypy: disallow-untyped-defs=False
"""Device functions of every kernel: tiles in and out, products, powers of two."""

import triton
import triton.language as tl

# the interpreter runs kernels in numpy, which has no bfloat16 products
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


def divisor(*sizes: int) -> int:
    """Return 8 where it divides all sizes, so that rows of 16-bit elements begin at multiples of 16 bytes, else 1."""
    return 1 if any(size % 8 for size in sizes) else 8


@triton.jit
def multiple(x, ALIGN: tl.constexpr):
    """Return x, a multiple of ALIGN, as one that the compiler knows to be so: of an argument it takes no hint."""
    return x // ALIGN * ALIGN


@triton.jit
def tile_of(tiles, index, BM: tl.constexpr, BN: tl.constexpr):
    """Return the matrix of a tile, and its first row and column."""
    tile = tiles + 3 * index
    return tl.load(tile), tl.load(tile + 1) * BM, tl.load(tile + 2) * BN


@triton.jit
def load_tile(p, stride, row, column, rows, columns, BR: tl.constexpr, BC: tl.constexpr):
    """Load the tile [BR, BC] at (row, column) of a row-major matrix [rows, columns]; zeros outside."""
    # the origin goes into the scalar pointer in 64 bits, so that offsets inside the tile fit 32
    origin = p + row * stride.to(tl.int64) + column
    o_row, o_column = tl.arange(0, BR), tl.arange(0, BC)
    inside = (o_row < rows - row)[:, None] & (o_column < columns - column)[None, :]
    return tl.load(origin + o_row[:, None] * stride + o_column[None, :], mask=inside, other=0.0)


@triton.jit
def load_transposed(p, stride, row, column, rows, columns, BR: tl.constexpr, BC: tl.constexpr):
    """Load the tile [BR, BC] at (row, column) of the transpose, [rows, columns], of a row-major matrix [columns, rows].

    It is read as a tile of its own: a transposed load_tile falls apart into loads of 4 bytes.
    """
    origin = p + column * stride.to(tl.int64) + row
    o_row, o_column = tl.arange(0, BR), tl.arange(0, BC)
    inside = (o_row < rows - row)[:, None] & (o_column < columns - column)[None, :]
    return tl.load(origin + o_row[:, None] + o_column[None, :] * stride, mask=inside, other=0.0)


@triton.jit
def load_factor(p_x, row, column, rows, k, d2, TRANSPOSED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """Load a tile of the factor on the side of the product's rows: U [d1, k], or V [d2, k]."""
    if TRANSPOSED:
        return load_transposed(p_x, d2, row, column, rows, k, BM, BN).to(tl.float32)
    return load_tile(p_x, k, row, column, rows, k, BM, BN).to(tl.float32)


@triton.jit
def store_tile(
    p, stride, row, column, rows, columns, tile, BR: tl.constexpr, BC: tl.constexpr, PIECE: tl.constexpr = 0
):
    """Store a tile [BR, BC] at (row, column) of a row-major matrix [rows, columns], inside its edges.

    With PIECE a thread stores so many neighbours at most.
    """
    origin = p + row * stride.to(tl.int64) + column
    o_row, o_column = tl.arange(0, BR), tl.arange(0, BC)
    inside = (o_row < rows - row)[:, None] & (o_column < columns - column)[None, :]
    addresses = origin + o_row[:, None] * stride + o_column[None, :]
    if PIECE > 0:
        addresses = tl.max_contiguous(addresses, [1, PIECE])
    tl.store(addresses, tile.to(p.dtype.element_ty), mask=inside)


@triton.jit
def widened(x):
    """Return x in float32, of bf16 two elements by two instructions: the compiler takes three."""
    if INTERPRETED or tl.bfloat16 != x.dtype:
        return x.to(tl.float32)
    return tl.inline_asm_elementwise(
        "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;", "=r,=r,r", [x], dtype=tl.float32, is_pure=True, pack=2
    )


@triton.jit
def dot(a, b, accumulator):
    """Return accumulator + a b in float32."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, accumulator, input_precision="ieee")


@triton.jit
def halves(tile, BR: tl.constexpr, BC: tl.constexpr):
    """Return the left and the right half of a tile [BR, BC]: an epilogue in strips needs fewer registers."""
    return tl.split(tl.permute(tl.reshape(tile, (BR, 2, BC // 2)), (0, 2, 1)))


@triton.jit
def reduce_tile(
    product, p_x, p_sums, row, column, rows, k, d2, TRANSPOSED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr
):
    """Sum a tile of the first product times the other factor over its rows, to p_sums."""
    x = load_factor(p_x, row, column, rows, k, d2, TRANSPOSED, BM, BN)
    o = column + tl.arange(0, BN)
    tl.store(p_sums + o, tl.sum(product * x, 0), mask=o < k)


@triton.jit
def power_of_two(x, BITS: tl.constexpr):
    """Return the power of two that takes x >= 0 just below 2^BITS; it and its inverse are normal float32."""
    exponent = (x.to(tl.int32, bitcast=True) >> 23) - 126
    exponent = tl.minimum(tl.maximum(BITS - exponent, -126), 126)
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def inverse(power):
    """Return 1 / power of a normal power of two, exactly: a division may be compiled to an approximation."""
    return ((254 << 23) - power.to(tl.int32, bitcast=True)).to(tl.float32, bitcast=True)
