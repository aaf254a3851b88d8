# mypy: disallow-untyped-defs=False
"""C = A B for batches of any strides, in float32 sums: the stages are made of it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from gsr_kernels.backends.triton.configurations import on, options
from gsr_kernels.backends.triton.tiles import INTERPRETED


@triton.jit
def _load(p, row, column, row_stride, column_stride, rows, columns, BR: tl.constexpr, BC: tl.constexpr):
    o_row, o_column = row + tl.arange(0, BR), column + tl.arange(0, BC)
    offsets = o_row.to(tl.int64)[:, None] * row_stride + o_column.to(tl.int64)[None, :] * column_stride
    return tl.load(p + offsets, mask=(o_row < rows)[:, None] & (o_column < columns)[None, :], other=0.0)


# a size or stride of 1, or a multiple of 16, would be compiled in: a kernel for every kind of shape
@triton.jit(
    do_not_specialize=[
        "rows", "columns", "depth", "a_batch", "a_row", "a_column", "b_batch", "b_row", "b_column",
    ]
)  # fmt: skip
def multiply(
    p_a, p_b, p_c, rows, columns, depth, a_batch, a_row, a_column, b_batch, b_row, b_column,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """c [batch, rows, columns] = a [batch, rows, depth] b [batch, depth, columns], a and b of one dtype, c float32."""
    batch = tl.program_id(0).to(tl.int64)
    row, column = tl.program_id(1) * BM, tl.program_id(2) * BN
    accumulator = tl.zeros([BM, BN], tl.float32)
    for step in range(0, depth, BK):
        a = _load(p_a + batch * a_batch, row, step, a_row, a_column, rows, depth, BM, BK)
        b = _load(p_b + batch * b_batch, step, column, b_row, b_column, depth, columns, BK, BN)
        if INTERPRETED:
            a, b = a.to(tl.float32), b.to(tl.float32)
        accumulator = tl.dot(a, b, accumulator, input_precision="ieee")
    o_row, o_column = row + tl.arange(0, BM), column + tl.arange(0, BN)
    p_tile = p_c + (batch * rows + o_row.to(tl.int64)[:, None]) * columns + o_column[None, :]
    mask = (o_row < rows)[:, None] & (o_column < columns)[None, :]
    tl.store(p_tile, accumulator, mask=mask)


TYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


def product(A: Tensor, B: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Multiply ``A [.., m, d] B [.., d, n] -> [.., m, n]`` in ``dtype``, by default that of the operands.

    Operands may have any strides. Raises TypeError for dtypes other than fp16, bf16 and fp32.
    """
    operand = torch.promote_types(A.dtype, B.dtype)
    if operand not in TYPES:
        raise TypeError(f"backend='triton' takes fp16, bf16 and fp32, got {operand}: use backend='torch'")
    batch, rows, depth, columns = A.shape[:-2], A.shape[-2], A.shape[-1], B.shape[-1]
    # conversions are torch's: in the kernel each pair of dtypes would be a variant to compile
    a, b = A.reshape(-1, rows, depth).to(operand), B.reshape(-1, depth, columns).to(operand)
    c = torch.empty((a.shape[0], rows, columns), dtype=torch.float32, device=A.device)
    # blocks of 64 do for every dtype without a spill; these operators are not on the optimizer's path
    BM, BN, BK = 64, 64, 32
    if c.numel():
        # CUDA takes 65,535 programs in the second and third dimension
        grid = (c.shape[0], triton.cdiv(rows, BM), triton.cdiv(columns, BN))
        with on(c.device):
            multiply[grid](
                a, b, c, rows, columns, depth, *a.stride(), *b.stride(),
                BM=BM, BN=BN, BK=BK, **options(num_warps=4, num_stages=2),
            )  # fmt: skip
    return c.view(*batch, rows, columns).to(dtype or operand)
