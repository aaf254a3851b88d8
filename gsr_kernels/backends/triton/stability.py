# mypy: disallow-untyped-defs=False
"""PS-LoRA's loss and counts of signs, a tile of D and P at a time, straight from the factors."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gsr_kernels.backends.triton.configurations import on, options
from gsr_kernels.backends.triton.tiles import INTERPRETED, divisor, load_tile, load_transposed, multiple, store_tile

# blocks small enough for several tiles, and edges, in the interpreter
TILE = {"BM": 32, "BN": 32, "BK": 16} if INTERPRETED else {"BM": 128, "BN": 64, "BK": 16}
WIDEST = 128
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
SIZES = ["rows", "columns", "rank", "old_rank"]


@triton.jit
def _factor(p, stride, row, column, rows, columns, TRANSPOSED: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr):
    """Return a tile [BR, BC] of a factor [rows, columns] that is stored as it is, or as its transpose, in float32."""
    if TRANSPOSED:
        return load_transposed(p, stride, row, column, rows, columns, BR, BC).to(tl.float32)
    return load_tile(p, stride, row, column, rows, columns, BR, BC).to(tl.float32)


@triton.jit
def _tanh(x):
    # of |x|: no power overflows
    power = tl.exp(-2.0 * tl.abs(x))
    size = (1.0 - power) / (1.0 + power)
    return tl.where(x < 0, -size, size)


@triton.jit
def product(
    p_left, p_right, left_stride, right_stride, row, column, rows, columns, depth,
    TRANSPOSED: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Return a tile of left right, with TRANSPOSED of the product of their transposes."""
    tile = tl.zeros([BM, BN], tl.float32)
    for step in range(0, depth, BK):
        left = _factor(p_left, left_stride, row, step, rows, depth, TRANSPOSED, BM, BK)
        right = _factor(p_right, right_stride, step, column, depth, columns, TRANSPOSED, BK, BN)
        tile = tl.dot(left, right, tile, input_precision=PRECISION)
    return tile


# sizes that are compiled in would make a kernel for every kind of shape
@triton.jit(do_not_specialize=SIZES)
def stability_rows(
    p_left, p_right, p_old_left, p_old_right, p_alpha, p_losses, p_grad, rows, columns, rank, old_rank,
    TRANSPOSED: tl.constexpr, GRADIENT: tl.constexpr, SIGN_ONLY: tl.constexpr, PRECISION: tl.constexpr,
    ALIGN: tl.constexpr, RANK: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Compute for BM rows of D and P of one module their part of the loss and of the left factor's gradient.

    left is B and right A, D [rows, columns]. TRANSPOSED: left is A, right B, as stored, and all is transposed.
    """
    rows, columns = multiple(rows, ALIGN), multiple(columns, ALIGN)
    rank, old_rank = multiple(rank, ALIGN), multiple(old_rank, ALIGN)
    module = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BM
    p_left += module * rows * rank
    p_right += module * columns * rank
    p_old_left += module * rows * old_rank
    p_old_right += module * columns * old_rank
    if TRANSPOSED:
        left_stride, old_left_stride, right_stride, old_right_stride = rows, rows, rank, old_rank
    else:
        left_stride, old_left_stride, right_stride, old_right_stride = rank, old_rank, columns, columns

    alpha = tl.load(p_alpha + module)
    losses = tl.zeros([BM], tl.float32)
    gradient = tl.zeros([BM, RANK], tl.float32)
    inside_rows = (tl.arange(0, BM) < rows - row)[:, None]
    for column in range(0, columns, BN):
        left = _factor(p_left, left_stride, row, 0, rows, rank, TRANSPOSED, BM, RANK)
        right = _factor(p_right, right_stride, 0, column, rank, columns, TRANSPOSED, RANK, BN)
        x = alpha * tl.dot(left, right, input_precision=PRECISION)
        p = product(
            p_old_left, p_old_right, old_left_stride, old_right_stride, row, column, rows, columns, old_rank,
            TRANSPOSED, PRECISION, BM, BN, BK,
        )  # fmt: skip
        t, p = _tanh(x), _tanh(alpha * p)
        # (1 − t²) p, the derivative of t p
        turn = p - t * t * p
        if SIGN_ONLY:
            inside = inside_rows & (tl.arange(0, BN) < columns - column)[None, :]
            losses += tl.sum(tl.where(inside, 1.0 - t * p, 0.0), 1)
            slope = -turn
        else:
            # x is 0 outside of the matrix
            part = x * (1.0 - t * p)
            losses += tl.sum(x * part, 1)
            slope = 2.0 * part - x * x * turn
        if GRADIENT:
            gradient = tl.dot(slope, tl.trans(right), gradient, input_precision=PRECISION)
    if not SIGN_ONLY:
        losses = losses / (alpha * alpha)
    tl.store(p_losses + module * tl.num_programs(0) + tl.program_id(0), tl.sum(losses, 0))
    if GRADIENT:
        gradient = gradient * (alpha if SIGN_ONLY else 1.0 / alpha)
        store_tile(p_grad + module * rows * rank, rank, row, 0, rows, rank, gradient, BM, RANK)


def tile(rank: int, wide: bool) -> dict[str, int]:
    """Return the tile beside ``rank`` columns of a gradient, which take registers too, as do ``wide`` factors."""
    if INTERPRETED:
        return TILE
    BM, BN = (128, 64) if rank <= 32 else (64 if rank <= 64 else 32, 32)
    return {**TILE, "BM": BM, "BN": BN // 2 if wide else BN}


def stability(
    B: Tensor, A: Tensor, old_B: Tensor, old_A: Tensor, alpha: Tensor, sign_only: bool, gradients: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Compute as the torch backend. The kernel walks D for B's gradient, and Dᵀ for A's: nothing is stored between.

    Raises TypeError for float64, ValueError for ranks above 128: the torch backend takes both.
    """
    factors, precision = checked(B, A, old_B, old_A)
    B, A, old_B, old_A = factors
    if B.shape[-1] > WIDEST:
        raise ValueError(f"backend='triton' takes ranks up to {WIDEST}, got {B.shape[-1]}: use backend='torch'")
    alpha = alpha.float()
    rank = max(16, triton.next_power_of_2(B.shape[-1]))
    align = divisor(*B.shape[-2:], A.shape[-1], old_B.shape[-1])
    shape = {"SIGN_ONLY": sign_only, "PRECISION": precision, "RANK": rank, **tile(rank, precision == "tf32x3")}
    sides = {False: (B, A, old_B, old_A), True: (A, B, old_A, old_B)} if gradients else {False: factors}
    found = []
    for transposed, (left, right, old_left, old_right) in sides.items():
        rows, columns = (A.shape[-1], B.shape[-2]) if transposed else (B.shape[-2], A.shape[-1])
        blocks = triton.cdiv(rows, shape["BM"])
        losses = torch.empty(len(B), blocks, dtype=torch.float32, device=B.device)
        grad = torch.empty(len(B), rows if gradients else 0, B.shape[-1], dtype=torch.float32, device=B.device)
        with on(B.device):
            stability_rows[blocks, len(B)](
                left, right, old_left, old_right, alpha, losses, grad, rows, columns, B.shape[-1], old_B.shape[-1],
                TRANSPOSED=transposed, GRADIENT=gradients, ALIGN=align, **shape, **options(num_warps=8, num_stages=2),
            )  # fmt: skip
        found.append((losses, grad))
    loss = found[0][0].sum(-1, dtype=torch.float64).float()
    return (loss, found[0][1], found[1][1].mT) if gradients else (loss, None, None)


def checked(*factors: Tensor) -> tuple[list[Tensor], str]:
    """Return contiguous factors, and the precision of their products; TypeError for float64."""
    dtype = factors[0].dtype
    for factor in factors[1:]:
        dtype = torch.promote_types(dtype, factor.dtype)
    if dtype not in DTYPES:
        raise TypeError(f"backend='triton' takes fp16, bf16 and fp32, got {dtype}: use backend='torch'")
    # 16-bit elements fit TF32 as they are
    return [factor.contiguous() for factor in factors], "tf32x3" if dtype == torch.float32 else "tf32"


@triton.jit(do_not_specialize=SIZES)
def count_rows(
    p_left, p_right, p_old_left, p_old_right, p_counts, rows, columns, rank, old_rank,
    PRECISION: tl.constexpr, ALIGN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Count in BM rows of one module the elements where D and P have one sign, and those of opposite signs."""
    rows, columns = multiple(rows, ALIGN), multiple(columns, ALIGN)
    rank, old_rank = multiple(rank, ALIGN), multiple(old_rank, ALIGN)
    module = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BM
    p_left += module * rows * rank
    p_right += module * columns * rank
    p_old_left += module * rows * old_rank
    p_old_right += module * columns * old_rank
    same, opposite = tl.zeros([BM], tl.int32), tl.zeros([BM], tl.int32)
    for column in range(0, columns, BN):
        d = product(p_left, p_right, rank, columns, row, column, rows, columns, rank,
                     False, PRECISION, BM, BN, BK)  # fmt: skip
        p = product(p_old_left, p_old_right, old_rank, columns, row, column, rows, columns,
                     old_rank, False, PRECISION, BM, BN, BK)  # fmt: skip
        # the product of two small values may vanish
        same += tl.sum((((d > 0) & (p > 0)) | ((d < 0) & (p < 0))).to(tl.int32), 1)
        opposite += tl.sum((((d > 0) & (p < 0)) | ((d < 0) & (p > 0))).to(tl.int32), 1)
    index = (module * tl.num_programs(0) + tl.program_id(0)) * 2
    tl.store(p_counts + index, tl.sum(same, 0))
    tl.store(p_counts + index + 1, tl.sum(opposite, 0))


def sign_counts(B: Tensor, A: Tensor, old_B: Tensor, old_A: Tensor) -> tuple[Tensor, Tensor]:
    """Count as the torch backend."""
    factors, precision = checked(B, A, old_B, old_A)
    rows, columns = B.shape[-2], A.shape[-1]
    blocks = triton.cdiv(rows, TILE["BM"])
    counts = torch.empty(len(B), blocks, 2, dtype=torch.int32, device=B.device)
    with on(B.device):
        count_rows[blocks, len(B)](
            *factors, counts, rows, columns, B.shape[-1], old_B.shape[-1],
            PRECISION=precision, ALIGN=divisor(rows, columns, B.shape[-1], old_B.shape[-1]), **TILE,
            **options(num_warps=8, num_stages=2),
        )  # fmt: skip
    same, opposite = counts.sum(1, dtype=torch.float64).unbind(-1)
    return same, opposite
