# mypy: disallow-untyped-defs=False
"""Table of matrices that the kernels of a step read: a row of int64 each, in the order of the constants below.

Addresses, strides and sizes of a matrix, its offsets in the group's buffers, and where AdamW writes: OUT is then the
weight, with moments of the same strides, and COPY its narrow copy.
"""

import triton
import triton.language as tl

FIELDS = tl.constexpr(24)
G, G_STRIDE, OUT, OUT_STRIDE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
U, S, VH = tl.constexpr(4), tl.constexpr(5), tl.constexpr(6)
FIRST_MOMENT, SECOND_MOMENT, COPY = tl.constexpr(7), tl.constexpr(8), tl.constexpr(9)
# of the weight that the matrix belongs to; MATRICES is 0 for all but its first
STEP, SKIPPED, SETTINGS = tl.constexpr(10), tl.constexpr(11), tl.constexpr(12)
PRODUCT, FOLDED = tl.constexpr(13), tl.constexpr(14)
D1, D2, K = tl.constexpr(15), tl.constexpr(16), tl.constexpr(17)
PARTIALS, PARTS, DIAGONAL = tl.constexpr(18), tl.constexpr(19), tl.constexpr(20)
MATRICES = tl.constexpr(21)
# beside the products of cuBLAS
OPERAND, RESULT = tl.constexpr(22), tl.constexpr(23)


@triton.jit
def address(table, matrix, FIELD: tl.constexpr, DTYPE: tl.constexpr, ALIGN: tl.constexpr):
    """Return a field as a pointer, where ALIGN is above 1 to a multiple of 16 bytes."""
    p = tl.load(table + matrix * FIELDS + FIELD).to(tl.pointer_type(DTYPE))
    # on the pointer: on the integer before it the hint is lost, and loads become 2 bytes wide
    if ALIGN > 1:
        p = tl.multiple_of(p, 16)
    return p


@triton.jit
def number(table, matrix, FIELD: tl.constexpr, ALIGN: tl.constexpr):
    """Return a field as an integer of 32 bits, a multiple of ALIGN."""
    return tl.multiple_of(tl.load(table + matrix * FIELDS + FIELD).to(tl.int32), ALIGN)


@triton.jit
def sizes(table, matrix, ALIGN: tl.constexpr):
    """Return d1, d2 and k."""
    return number(table, matrix, D1, 1), number(table, matrix, D2, ALIGN), number(table, matrix, K, ALIGN)
