"""Time and memory of several variants of one computation, measured side by side."""

import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

Variants = dict[str, Callable[[], object]]


def interleaved(variants: Variants, seconds: float = 3.0, least: int = 11) -> dict[str, list[float]]:
    """Milliseconds of each run of each variant, in turns, so that a disturbance meets them all."""
    for run in variants.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in variants}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < least:
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - start) * 1e3)
    return times


def percentiles(times: list[float]) -> dict[str, float]:
    """p20, p50 and p80 in milliseconds."""
    quantiles = torch.tensor(times, dtype=torch.float64).quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64))
    return {f"p{share}_ms": round(value, 4) for share, value in zip((20, 50, 80), quantiles.tolist())}


def peak_extra_bytes(run: Callable[[], object]) -> int:
    """The most memory that a run holds beyond what was there before it, on the CPU."""
    run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    held = peak = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak
