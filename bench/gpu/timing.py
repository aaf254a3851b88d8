"""Milliseconds of a call on the GPU."""

from collections.abc import Callable

import torch


def timed(variants: dict[str, Callable[[], object]], rounds: int = 20) -> dict[str, dict[str, float]]:
    """p20, p50 and p80 of each variant, in turns, each run after a write that empties the L2 cache."""
    flush = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    for run in variants.values():
        run()
        run()
    torch.cuda.synchronize()
    events = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            flush.zero_()
            start.record()
            run()
            end.record()
            events[name].append((start, end))
    torch.cuda.synchronize()
    found = {}
    for name, pairs in events.items():
        times = torch.tensor([start.elapsed_time(end) for start, end in pairs])
        p20, p50, p80 = times.quantile(torch.tensor([0.2, 0.5, 0.8])).tolist()
        found[name] = {"p20_ms": round(p20, 4), "p50_ms": round(p50, 4), "p80_ms": round(p80, 4)}
    return found
