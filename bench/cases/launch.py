"""Host milliseconds that launching one optimizer step takes, and the step replayed as a CUDA graph."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from bench.optimizers import ADAMW, ATTACHED, OURS, Linears, makers, work
from bench.run import Run, judged
from bench.timing import WARM, captured, percentiles, synchronized

TIMES = 20
# milliseconds of the host
ALLOWED = 1.0


def rows(run: Run) -> Iterator[dict]:
    kernels = work(run.setting, ADAMW, OURS, ATTACHED)
    if run.dry:
        yield from run.compare(run.setting.labels, kernels, dict, ADAMW)
        return
    made = makers(run, Linears(run))
    for name in kernels:
        (optimizer,) = made[name]()
        yield _row(run, f"{name}, launched", "eager", _host(run, optimizer.step))
        if run.on_gpu and name != ATTACHED:
            yield _row(run, f"{name}, replayed", "graph", _host(run, captured(optimizer.step)))


def _row(run: Run, name: str, launch: str, times: list[float]) -> dict:
    found = percentiles(times)
    said = judged(f"{found['p50_ms']:.4g} ms", found["p50_ms"], ALLOWED) if run.on_gpu else ""
    return {**run.setting.labels, "variant": name, "launch": launch, **found, "verdict": said}


def _host(run: Run, step: Callable[[], object]) -> list[float]:
    """Time until the call returns, the device idle before it; on a CPU that is the step itself."""
    times = []
    for _ in range(WARM + TIMES):
        start = synchronized(run.device)
        step()
        times.append((time.perf_counter() - start) * 1e3)
    synchronized(run.device)
    return times[WARM:]
