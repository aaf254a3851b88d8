"""First decision: grouped Triton without an epilogue against cuBLAS, shape by shape."""

from collections.abc import Callable, Iterator

import torch

from bench.gpu.bare import CUTS, LAYOUTS, Grouped
from bench.gpu.timing import timed

bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
# shapes of weights of Falcon3-1B and Llama-3-8B, and how many of them are taken at once
SHAPES = {(2048, 2048): 8, (1024, 2048): 16, (8192, 2048): 4, (2048, 8192): 4, (4096, 14336): 1}
# (left, right) operands; where they differ the left one is rounded in registers
PAIRS = [(fp16, fp16), (bf16, bf16), (bf16, fp16), (fp32, fp16)]


def products(d1: int, d2: int) -> list[tuple[int, int, int]]:
    """(rows, columns, depth) of the first and the second product of a weight: Gᵀ U or G V, and the one that is G'."""
    short, long = sorted((d1, d2))
    return list(dict.fromkeys([(short, short, long), (d1, d2, short)]))


def rows(quick: bool) -> Iterator[dict]:
    """One row a product, pair of dtypes, layout and variant; ``ratio`` is cuBLAS's time over the variant's."""
    for shape, count in list(SHAPES.items())[: 2 if quick else None]:
        for size in products(*shape):
            for pair in PAIRS:
                for layout in LAYOUTS:
                    # what is rounded is the gradient of the first product, which is not taken as N N
                    if pair[0] == pair[1] or layout != "NN":
                        yield from _rows(*size, count, *pair, layout)


def _rows(m: int, n: int, d: int, count: int, first: torch.dtype, dtype: torch.dtype, layout: str) -> Iterator[dict]:
    left = _draw(count, m, d, layout[0] == "T", first)
    right = _draw(count, d, n, layout[1] == "T", dtype)
    out = torch.empty(count, m, n, device="cuda", dtype=dtype)
    a, b = left.mT if layout[0] == "T" else left, right.mT if layout[1] == "T" else right
    # cuBLAS takes one dtype: what Triton rounds in registers is first written out in the other
    variants = {"cublas": lambda: torch.bmm(a.to(dtype), b, out=out)}
    truth, failed = torch.bmm(a.to(dtype), b), {}
    for cut in CUTS:
        grouped, reason = _tried(left, right, out, layout, cut, truth)
        if reason:
            failed[f"triton {cut}"] = reason
        else:
            variants[f"triton {cut}"] = grouped
    times = timed(variants)
    flop = 2 * count * m * n * d
    pair = f"{first} x {dtype}".replace("torch.", "")
    shared = {"shape": f"{count}x {m}x{n}x{d}", "dtype": pair, "flop": flop, "layout": layout}
    for name, found in times.items():
        ratio = times["cublas"]["p50_ms"] / found["p50_ms"]
        yield {**shared, "variant": name, **found, "ratio": round(ratio, 3), "ratio_to": "cublas",
               "tflops": round(flop / found["p50_ms"] / 1e9, 1)}  # fmt: skip
    for name, reason in failed.items():
        yield {**shared, "variant": name, "error": reason}


def _tried(
    left: torch.Tensor, right: torch.Tensor, out: torch.Tensor, layout: str, cut: str, truth: torch.Tensor
) -> tuple[Callable[[], None], str]:
    """The product in one cut, and why it is of no use."""
    grouped = Grouped(left, right, out, layout, cut)
    try:
        out.fill_(torch.nan)
        grouped()
        error = (torch.linalg.vector_norm((out - truth).float()) / torch.linalg.vector_norm(truth.float())).item()
    except Exception as reason:
        return grouped, f"{type(reason).__name__}: {reason}".splitlines()[0][:200]
    return grouped, "" if error < 1e-2 else f"relative error {error:.1e}"


def _draw(count: int, rows: int, columns: int, transposed: bool, dtype: torch.dtype) -> torch.Tensor:
    shape = (columns, rows) if transposed else (rows, columns)
    return torch.randn(count, *shape, device="cuda", dtype=dtype)
