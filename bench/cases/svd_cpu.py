"""The time of decompositions on a CPU: each driver against n, several matrices one by one and side by side, a sketch;
beside torch's SVD and scikit-learn's randomized one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tqdm import tqdm

from bench.decompositions import arrangements, drivers, sketches
from bench.run import Run

# the largest side at which each driver is timed
SIDES = {"gram": 2048, "gesdd": 2048, "polar": 2048, "float64": 1024}
EXACT = [(8, 64, 64), (8, 128, 128), (8, 256, 256), (1024, 4096), (4096, 1024)]
# runs of each variant, of which the slowest take tens of seconds
LEAST = 3
# heads, which workers could share among the cores
HEADS = (32, 128, 128)
RANDOMIZED = [(1024, 1024), (2048, 2048), (4096, 2048)]


def rows(run: Run) -> Iterator[dict]:
    run = replace(run, least=LEAST)
    sides = [n for n in (64, 128, 256, 512, 1024, 2048) if n <= max(SIDES.values())]
    for n in tqdm(sides, "drivers", leave=False, disable=None):
        yield from drivers(run, (n, n), [driver for driver, most in SIDES.items() if n <= most])
    for shape in tqdm(EXACT, "exact", leave=False, disable=None):
        yield from drivers(run, shape, ["gram"])
    yield from arrangements(run, HEADS)
    for shape in tqdm(RANDOMIZED, "randomized", leave=False, disable=None):
        for rank in (256, 64):
            yield from sketches(run, shape, rank)
