"""Grouped Triton without an epilogue against cuBLAS, shape by shape: what the tiles alone reach."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from bench.run import Makers, Run, Trial, untested
from bench.transforms import error
from gsr_kernels.backends.triton.configurations import options
from gsr_kernels.backends.triton.product import TYPES
from gsr_kernels.backends.triton.tables import tile_table
from gsr_kernels.backends.triton.tiles import dot, load_tile, load_transposed, store_tile
from gsr_kernels.cli.floors import Work

bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
# shapes of weights, and how many of them are taken at once
FALCON3_1B = {(2048, 2048): 8, (1024, 2048): 16, (8192, 2048): 4, (2048, 8192): 4}
LLAMA3_8B = {(4096, 14336): 1}
# (left, right) operands; where they differ the left one is rounded in registers
PAIRS = [(fp16, fp16), (bf16, bf16), (bf16, fp16), (fp32, fp16)]
CUBLAS = "torch.bmm"
# BM, BN, BK, warps, stages, registers, blocks on a multiprocessor
TILES = {
    "128x128x64": (128, 128, 64, 8, 3, 128, 2),
    "128x128x32": (128, 128, 32, 8, 4, 128, 2),
    "128x256x64": (128, 256, 64, 8, 3, None, 1),
    "64x256x64": (64, 256, 64, 4, 4, None, 1),
}
# layouts of the left and the right operand: N row-major, T transposed
LAYOUTS = ("NN", "NT", "TN")


def rows(run: Run) -> Iterator[dict]:
    # a turn takes milliseconds
    run = replace(run, seconds=min(run.seconds, 0.1))
    for (shape, count), pair, layout in product({**FALCON3_1B, **LLAMA3_8B}.items(), PAIRS, LAYOUTS):
        # what is rounded is the gradient of the first product, which is not taken as N N
        for size in products(*shape) if pair[0] == pair[1] or layout != "NN" else ():
            yield from _rows(run, count, size, pair, layout)


def products(d1: int, d2: int) -> list[tuple[int, int, int]]:
    """Return (rows, columns, depth) of a weight's first and second product: Gᵀ U or G V, and the one that is G'."""
    short, long = sorted((d1, d2))
    return list(dict.fromkeys([(short, short, long), (d1, d2, short)]))


def _rows(
    run: Run, count: int, size: tuple[int, int, int], pair: tuple[torch.dtype, torch.dtype], layout: str
) -> Iterator[dict]:
    (m, n, d), (first, dtype) = size, pair
    turned = [side == "T" for side in layout]

    def drawn(rows: int, columns: int, transposed: bool, dtype: torch.dtype) -> Tensor:
        shape = (columns, rows) if transposed else (rows, columns)
        return torch.randn(count, *shape, device=run.device).to(dtype)

    def make() -> Makers:
        left, right = drawn(m, d, turned[0], first), drawn(d, n, turned[1], dtype)
        out = torch.empty(count, m, n, device=run.device, dtype=dtype)
        a, b = left.mT if turned[0] else left, right.mT if turned[1] else right
        # cuBLAS takes one dtype: what Triton rounds in registers is first written out in the other
        makers = untested({CUBLAS: lambda: torch.bmm(a.to(dtype), b, out=out)})
        if not run.on_gpu:
            return makers
        truth = torch.bmm(a.to(dtype), b).double()

        def tested(launch: Callable[[], object]) -> Trial:
            out.fill_(torch.nan)
            return Trial(launch, lambda: error(out, truth), 1e-2)

        ours = {f"triton {name}": partial(tested, by_triton(left, right, out, layout, name)) for name in TILES}
        return makers | ours

    work = [Work(2 * count * m * n * d, count * (m * d * first.itemsize + (d * n + m * n) * dtype.itemsize))]
    variants = dict.fromkeys((CUBLAS, *(f"triton {name}" for name in TILES)), work)
    labels = {"shape": f"{count}x {m}x{n}x{d}", "dtype": f"{first} x {dtype}".replace("torch.", ""), "layout": layout}
    yield from run.compare(labels, variants, make, CUBLAS)


@triton.jit
def grouped(
    p_left, p_right, p_out, tiles, count, rows, columns, depth, DTYPE: tl.constexpr,
    LEFT_T: tl.constexpr, RIGHT_T: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Multiply left [L, rows, depth] by right [L, depth, columns], rounded in registers to DTYPE if they are not of it.

    The left one is stored as [L, depth, rows] if LEFT_T, the right one as [L, columns, depth] if RIGHT_T.
    """
    rows, columns, depth = tl.multiple_of(rows, 8), tl.multiple_of(columns, 8), tl.multiple_of(depth, 8)
    for index in tl.range(tl.program_id(0), count, tl.num_programs(0)):
        matrix = tl.load(tiles + 3 * index).to(tl.int64)
        row, column = tl.load(tiles + 3 * index + 1) * BM, tl.load(tiles + 3 * index + 2) * BN
        left, right = p_left + matrix * rows * depth, p_right + matrix * depth * columns
        accumulator = tl.zeros([BM, BN], tl.float32)
        for step in range(0, depth, BK):
            if LEFT_T:
                a = load_transposed(left, rows, row, step, rows, depth, BM, BK)
            else:
                a = load_tile(left, depth, row, step, rows, depth, BM, BK)
            if RIGHT_T:
                b = load_transposed(right, depth, step, column, depth, columns, BK, BN)
            else:
                b = load_tile(right, columns, step, column, depth, columns, BK, BN)
            accumulator = dot(a.to(DTYPE), b, accumulator)
        store_tile(p_out + matrix * rows * columns, columns, row, column, rows, columns, accumulator, BM, BN)


def by_triton(left: Tensor, right: Tensor, out: Tensor, layout: str, tile: str) -> Callable[[], object]:
    """Return the launch, tables made beforehand.

    left ``[L, rows, depth]``, right ``[L, depth, columns]``, transposed in memory as ``layout`` says.
    """
    count, rows, columns = out.shape
    BM, BN, BK, warps, stages, registers, resident = TILES[tile]
    table = torch.from_numpy(tile_table(range(count), [(rows, columns)] * count, BM, BN)).to(out.device)
    multiprocessors = torch.cuda.get_device_properties(out.device).multi_processor_count
    grid = (min(len(table), resident * multiprocessors),)
    depth = left.shape[1 if layout[0] == "T" else 2]
    return lambda: grouped[grid](
        left, right, out, table, len(table), rows, columns, depth, DTYPE=TYPES[right.dtype], LEFT_T=layout[0] == "T",
        RIGHT_T=layout[1] == "T", BM=BM, BN=BN, BK=BK, **options(warps, stages, registers),
    )  # fmt: skip
