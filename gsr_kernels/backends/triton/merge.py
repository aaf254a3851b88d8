# mypy: disallow-untyped-defs=False
"""Merge several adapters into a weight, every element of which is read and written once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gsr_kernels.backends.torch import merge as plain
from gsr_kernels.backends.triton.configurations import on, options
from gsr_kernels.backends.triton.stability import TILE, checked, product
from gsr_kernels.backends.triton.tiles import divisor, load_tile, multiple, store_tile


@triton.jit(do_not_specialize=["tasks", "rows", "columns", "rank", "stride", "magnitude"])
def merge_tiles(
    p_w, p_left, p_right, tasks, rows, columns, rank, stride, share, magnitude,
    PRECISION: tl.constexpr, ALIGN: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Add to a tile of W [rows, columns] the largest of the tasks' elements, or ``share`` of their sum."""
    columns, rank, stride = multiple(columns, ALIGN), multiple(rank, ALIGN), multiple(stride, ALIGN)
    row, column = tl.program_id(0) * BM, tl.program_id(1) * BN
    merged = tl.zeros([BM, BN], tl.float32)
    for task in range(tasks):
        p_b, p_a = p_left + task * rows.to(tl.int64) * rank, p_right + task * columns.to(tl.int64) * rank
        delta = product(p_b, p_a, rank, columns, row, column, rows, columns, rank, False, PRECISION, BM, BN, BK)
        larger = tl.where(tl.abs(delta) >= tl.abs(merged), delta, merged)
        merged = tl.where(magnitude != 0, larger, merged + delta)
    w = load_tile(p_w, stride, row, column, rows, columns, BM, BN).to(tl.float32)
    store_tile(p_w, stride, row, column, rows, columns, w + share * merged, BM, BN)


def merge(W: Tensor, B: Tensor, A: Tensor, how: str, density: float) -> None:
    """Merge as the torch backend, which computes float64, and TIES, which needs whole matrices."""
    if how == "ties" or W.stride(-1) != 1 or torch.float64 in (W.dtype, B.dtype, A.dtype):
        plain.merge(W, B, A, how, density)
        return
    (B, A), precision = checked(B, A)
    share = 1 / len(B) if how == "mean" else 1.0
    grid = triton.cdiv(W.shape[0], TILE["BM"]), triton.cdiv(W.shape[1], TILE["BN"])
    align = divisor(W.shape[1], B.shape[-1], W.stride(0))
    with on(W.device):
        merge_tiles[grid](
            W, B, A, len(B), *W.shape, B.shape[-1], W.stride(0), share, int(how == "magnitude"),
            PRECISION=precision, ALIGN=align, **TILE,
            **options(num_warps=8, num_stages=2),
        )  # fmt: skip
