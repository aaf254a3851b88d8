"""First decision: grouped Triton without an epilogue against cuBLAS, shape by shape."""

from collections.abc import Iterator

import torch

from bench.gpu.bare import CUTS, Grouped
from bench.gpu.timing import timed

# (rows, columns, depth) of the products of Falcon3-1B and Llama-3-8B, and how many of them are taken at once
SHAPES = [(2048, 2048, 2048, 8), (1024, 1024, 2048, 16), (2048, 2048, 8192, 4), (8192, 2048, 2048, 4),
          (2048, 8192, 2048, 4), (4096, 4096, 4096, 2), (4096, 4096, 14336, 1), (4096, 14336, 4096, 1)]  # fmt: skip


def rows(quick: bool) -> Iterator[dict]:
    """One row a shape, dtype, layout and variant; ``ratio`` is cuBLAS's time over the variant's."""
    for m, n, d, count in SHAPES[:2] if quick else SHAPES:
        for dtype in (torch.bfloat16, torch.float16):
            for lying in (True, False):
                yield from _rows(m, n, d, count, dtype, lying)


def _rows(m: int, n: int, d: int, count: int, dtype: torch.dtype, lying: bool) -> Iterator[dict]:
    left = torch.randn(count, m, d, device="cuda", dtype=dtype)
    right = torch.randn(count, *((n, d) if lying else (d, n)), device="cuda", dtype=dtype)
    out = torch.empty(count, m, n, device="cuda", dtype=dtype)
    straight = right.mT if lying else right
    variants = {"cublas": lambda: torch.bmm(left, straight, out=out)}
    truth, failed = torch.bmm(left, straight), {}
    for cut in CUTS:
        grouped = Grouped(left, right, out, lying, cut)
        try:
            out.fill_(torch.nan)
            grouped()
            error = ((out - truth).float().norm() / truth.float().norm()).item()
            if not error < 1e-2:
                raise RuntimeError(f"relative error {error:.1e}")
            variants[f"triton {cut}"] = grouped
        except Exception as reason:
            failed[f"triton {cut}"] = str(reason).splitlines()[0][:200]
    times = timed(variants)
    flop = 2 * count * m * n * d
    shared = {"shape": f"{count}x {m}x{n}x{d}", "dtype": str(dtype).removeprefix("torch."), "flop": flop,
              "layout": "NT" if lying else "NN"}  # fmt: skip
    for name, found in times.items():
        ratio = times["cublas"]["p50_ms"] / found["p50_ms"]
        yield {**shared, "variant": name, **found, "ratio": round(ratio, 3), "ratio_to": "cublas",
               "tflops": round(flop / found["p50_ms"] / 1e9, 1)}  # fmt: skip
    for name, reason in failed.items():
        yield {**shared, "variant": name, "error": reason}
