"""Time and memory of several variants of one computation, side by side, and what the device reaches."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from gsr_kernels.cli.floors import Rates

Variants = dict[str, Callable[[], object]]

CPU = torch.device("cpu")
# more than any GPU's second-level cache holds
FLUSHED = 2**28
# turns, beyond which a median moves no more
MOST = 1000
# runs before those that count
WARM = 2
# the side of the products and the elements of the copy that measure a GPU
PRODUCT, COPY = 8192, 2**30


def timed(variants: Variants, device: torch.device, seconds: float, least: int) -> dict[str, list[float]]:
    """Return the milliseconds of each run of each variant, in turns, so that a disturbance meets them all.

    On a GPU they pass between two events, and each run follows a write that empties the second-level cache.
    """
    flush = torch.empty(FLUSHED if device.type == "cuda" else 0, dtype=torch.uint8, device=device)

    def turn() -> list[list[float | torch.cuda.Event]]:
        marks = []
        for run in variants.values():
            flush.zero_()
            start = _mark(device)
            run()
            marks.append([start, _mark(device)])
        return marks

    # warms up
    turn()
    begun = synchronized(device)
    turns = [turn()]
    taken = synchronized(device) - begun
    # without a wait between turns: the host stays ahead, as in training
    turns += [turn() for _ in range(min(MOST, max(least, int(seconds / taken))) - 1)]
    synchronized(device)
    return {name: [_between(*marks[i]) for marks in turns] for i, name in enumerate(variants)}


def synchronized(device: torch.device) -> float:
    """Return the time in seconds, when the device has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _mark(device: torch.device) -> float | torch.cuda.Event:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(start: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    """Return the milliseconds between two marks."""
    return (end - start) * 1e3 if isinstance(start, float) else start.elapsed_time(end)


def percentiles(times: list[float]) -> dict[str, float]:
    """Return p20, p50 and p80 in milliseconds."""
    quantiles = torch.tensor(times, dtype=torch.float64).quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64))
    return {f"p{share}_ms": round(value, 4) for share, value in zip((20, 50, 80), quantiles.tolist())}


def captured(run: Callable[[], object]) -> Callable[[], object]:
    """Return the run as a CUDA graph. The runs before allocate its memory."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def peak_extra_bytes(run: Callable[[], object], device: torch.device = CPU) -> int:
    """Return the most memory that a run holds beyond what was there before it."""
    run()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        synchronized(device)
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    held = peak = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


# one H200: products of random 16-bit elements and a copy as measured there, TF32 as half of the first, plain float32 by
# its datasheet
H200 = Rates({"16-bit": 790.0, "tf32": 395.0, "fp32": 67.0}, bandwidth=4.3)


def measured(device: torch.device) -> Rates:
    """Measure the same by the best of some products and copies. A CPU multiplies in float32, whatever it is given."""
    if device.type == "cuda":
        half, single = (_product(PRODUCT, dtype, device) for dtype in (torch.bfloat16, torch.float32))
        return Rates({"16-bit": half, "tf32": half / 2, "fp32": single}, _copy(COPY, device))
    # a CPU is at its best where the operands fit its cache
    best = max(_product(n, torch.float32, device) for n in (512, 1024))
    return Rates({"16-bit": best, "tf32": best, "fp32": best}, _copy(2**25, device))


def _product(n: int, dtype: torch.dtype, device: torch.device) -> float:
    """Return TFLOP/s."""
    left, right = torch.randn(2, n, n, device=device).to(dtype)
    out = torch.empty_like(left)
    return 2 * n**3 / _best(lambda: torch.mm(left, right, out=out), device) * 1e-9


def _copy(elements: int, device: torch.device) -> float:
    """Return TB/s."""
    source = torch.randn(elements, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best(lambda: target.copy_(source), device) * 1e-9


def _best(run: Callable[[], object], device: torch.device) -> float:
    return min(timed({"": run}, device, seconds=0.2, least=5)[""])


def rows_of(rates: Rates) -> list[dict]:
    """Return the measured TFLOP/s and TB/s as rows, without TF32, and on a CPU without 16-bit products."""
    rated = {unit: rate for unit, rate in rates.products.items() if unit != "tf32"}
    if len(set(rates.products.values())) == 1:
        del rated["16-bit"]
    return [
        {"variant": name, "rate": float(f"{rate:.4g}")} for name, rate in (rated | {"memory": rates.bandwidth}).items()
    ]
