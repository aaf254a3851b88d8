"""Grouped Triton without an epilogue against cuBLAS, shape by shape: what the tiles alone reach."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from gsr_kernels.cli.floors import Work

from ..bare import CUTS, LAYOUTS, Grouped
from ..draw import error
from ..run import Makers, Run, Trial

bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
# shapes of weights of Falcon3-1B and Llama-3-8B, and how many of them are taken at once
SHAPES = {(2048, 2048): 8, (1024, 2048): 16, (8192, 2048): 4, (2048, 8192): 4, (4096, 14336): 1}
# (left, right) operands; where they differ the left one is rounded in registers
PAIRS = [(fp16, fp16), (bf16, bf16), (bf16, fp16), (fp32, fp16)]
CUBLAS = "torch.bmm"


def rows(run: Run) -> Iterator[dict]:
    # a turn takes milliseconds
    run = replace(run, seconds=min(run.seconds, 0.1))
    for shape, count in SHAPES.items():
        for size in products(*shape):
            for pair in PAIRS:
                for layout in LAYOUTS:
                    # what is rounded is the gradient of the first product, which is not taken as N N
                    if pair[0] == pair[1] or layout != "NN":
                        yield from _rows(run, *size, count, *pair, layout)


def products(d1: int, d2: int) -> list[tuple[int, int, int]]:
    """(rows, columns, depth) of the first and the second product of a weight: Gᵀ U or G V, and the one that is G'."""
    short, long = sorted((d1, d2))
    return list(dict.fromkeys([(short, short, long), (d1, d2, short)]))


def _rows(
    run: Run, m: int, n: int, d: int, count: int, first: torch.dtype, dtype: torch.dtype, layout: str
) -> Iterator[dict]:
    labels = {
        "shape": f"{count}x {m}x{n}x{d}",
        "dtype": f"{first} x {dtype}".replace("torch.", ""),
        "layout": layout,
    }
    moved = count * (m * d * first.itemsize + (d * n + m * n) * dtype.itemsize)
    work = [Work(2 * count * m * n * d, moved)]
    variants = dict.fromkeys((CUBLAS, *(f"triton {cut}" for cut in CUTS)), work)
    yield from run.compare(labels, variants, lambda: _makers(run, m, n, d, count, first, dtype, layout), CUBLAS)


def _makers(
    run: Run, m: int, n: int, d: int, count: int, first: torch.dtype, dtype: torch.dtype, layout: str
) -> Makers:
    left = _draw(count, m, d, layout[0] == "T", first, run.device)
    right = _draw(count, d, n, layout[1] == "T", dtype, run.device)
    out = torch.empty(count, m, n, device=run.device, dtype=dtype)
    a, b = left.mT if layout[0] == "T" else left, right.mT if layout[1] == "T" else right
    # cuBLAS takes one dtype: what Triton rounds in registers is first written out in the other
    makers: dict[str, Callable[[], Trial]] = {CUBLAS: lambda: Trial(lambda: torch.bmm(a.to(dtype), b, out=out))}
    if not run.on_gpu:
        return makers
    truth = torch.bmm(a.to(dtype), b).double()

    def grouped(cut: str) -> Trial:
        out.fill_(torch.nan)
        return Trial(Grouped(left, right, out, layout, cut), lambda: error(out, truth), 1e-2)

    return makers | {f"triton {cut}": lambda cut=cut: grouped(cut) for cut in CUTS}


def _draw(count: int, rows: int, columns: int, transposed: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    shape = (columns, rows) if transposed else (rows, columns)
    return torch.randn(count, *shape, device=device).to(dtype)
