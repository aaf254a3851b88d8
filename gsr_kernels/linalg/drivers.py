"""The fastest way on a device, timed on the machine and kept on its disk: first of all the drivers of the exact SVD."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import torch

from gsr_kernels.backends.cuda import SMALL, refusal, small_svd_limit
from gsr_kernels.io.decisions import Decisions, name_of

# in the order in which they take over from each other; a device that is not listed has its matrices done on the CPU
CHAINS = {"cpu": ("gram", "gesdd", "float64"), "cuda": ("jacobi", "polar", "gesvdj", "gesvd", "float64")}

# beyond it the probe would cost more than it tells
LARGEST = 2048


# one for each decision, since to time one thing may decide another
_probing: dict[str, threading.Lock] = {}
decisions = Decisions("svd_drivers.json")


def chain(
    device: torch.device,
    size: int,
    driver: str | None,
    clock: Callable[[str, int], float],
    dtype: torch.dtype = torch.float32,
) -> tuple[str, ...]:
    """Return the drivers for ``size`` = min(m, n), the first to try first; ValueError for an unknown driver.

    ``clock`` returns the seconds of a driver on a matrix of a size, infinite where it does not decompose it.
    """
    names, key, timed = candidates(device, size, dtype)
    if driver is None:
        driver = (
            fastest(device, key, names[:-2], lambda name: clock(name, timed)) if device.type == "cuda" else names[0]
        )
    known = [*dict.fromkeys((*names, "polar"))]
    if driver not in known:
        raise ValueError(f"driver must be None or one of {', '.join(known)} on {device.type}, got {driver!r}")
    return driver, *(other for other in names if other != driver)


def candidates(device: torch.device, size: int, dtype: torch.dtype) -> tuple[tuple[str, ...], str, int]:
    """Return the drivers for ``size`` = min(m, n), the key of their decision, the size that is timed."""
    names = CHAINS.get(device.type, ("float64",))
    rotated = device.type == "cuda" and dtype == torch.float32 and size <= SMALL
    small = small_svd_limit(device) if rotated else 0
    if size <= small:
        timed = power_of_two(size, small)
        return names, f"{timed} with jacobi", timed
    timed = power_of_two(size)
    unfit = {"jacobi"} if dtype == torch.float32 else {"jacobi", "gram"}
    return tuple(name for name in names if name not in unfit), str(timed), timed


def power_of_two(size: int, largest: int = LARGEST) -> int:
    """Return the size that is timed in the place of this one: all up to a power of two share a decision."""
    return min(1 << (size - 1).bit_length(), largest)


def chosen(device: torch.device, key: str) -> str | None:
    """Return what was decided by ``key`` on this machine, if anything was."""
    return decisions.known(machine(device)).get(key)


def fastest(device: torch.device, key: str, names: Sequence[str], clock: Callable[[str], float]) -> str:
    """Return the name that takes the fewest seconds; what is decided by ``key`` is timed once on a machine."""
    known = decisions.known(machine(device))
    with _probing.setdefault(key, threading.Lock()):
        # what is kept may be damaged, or be no candidate any more
        if known.get(key) not in names:
            taken = {name: clock(name) for name in names}
            decisions.keep(machine(device), {key: min(taken, key=lambda name: taken[name])})
        return known[key]


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of a call on a GPU; one before it loads libraries and allocates."""
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


def machine(device: torch.device) -> str:
    """Return the name of a GPU and of what runs on it."""
    return name_of(device, *([] if refusal(device) else ["extension"]))
