"""The time of decompositions on a CPU: each driver against n, several matrices one by one and side by side, a sketch;
beside torch's SVD and scikit-learn's randomized one."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from tqdm import tqdm

from bench.decompositions import ARRANGED, DRIVEN, labels, peer, predicted
from bench.run import Run
from bench.timing import Variants, compared, interleaved
from gsr_kernels.linalg import randomized_svd, svd
from gsr_kernels.linalg.randomized_svd import defaults
from gsr_kernels.linalg.side_by_side import bases_of

# the largest side at which each driver is timed
SIDES = {"gesdd": 2048, "polar": 2048, "float64": 1024}
EXACT = [(8, 64, 64), (8, 128, 128), (8, 256, 256), (1024, 4096), (4096, 1024)]
# runs of each variant, of which the slowest take tens of seconds
LEAST = 3
# heads, which workers could share among the cores
HEADS = (32, 128, 128)
RANDOMIZED = [(1024, 1024), (2048, 2048), (4096, 2048)]


def rows(run: Run) -> Iterator[dict]:
    sides = [(n, n) for n in (64, 128, 256, 512, 1024, 2048) if n <= max(SIDES.values())]
    if run.dry:
        yield from predicted(run, sides + [shape for shape in EXACT if len(shape) == 2], RANDOMIZED)
        return
    for n, _ in tqdm(sides, "drivers", leave=False, disable=None):
        yield from exact(run, (n, n), [driver for driver, most in SIDES.items() if n <= most])
    for shape in tqdm(EXACT, "exact", leave=False, disable=None):
        yield from exact(run, shape, ["gesdd"])
    yield from side_by_side(run, HEADS)
    for shape in tqdm(RANDOMIZED, "randomized", leave=False, disable=None):
        for rank in (256, 64):
            yield from randomized(run, shape, rank)


def exact(run: Run, shape: tuple[int, ...], drivers: list[str]) -> Iterator[dict]:
    W = torch.randn(shape)
    variants: Variants = {DRIVEN + driver: lambda driver=driver: svd(W, driver) for driver in drivers}
    variants["torch.linalg.svd"] = lambda: torch.linalg.svd(W, full_matrices=False)
    yield from _timed(run, variants, "torch.linalg.svd", shape, min(shape[-2:]))


def side_by_side(run: Run, shape: tuple[int, int, int]) -> Iterator[dict]:
    """Time each arrangement, though a CPU's are done one by one."""
    weights = torch.randn(shape).unbind()
    variants: Variants = {f"svd, {how}": lambda to=to: bases_of(weights, None, to) for how, to in ARRANGED.items()}
    yield from _timed(run, variants, "svd, one by one", shape, min(shape[-2:]))


def randomized(run: Run, shape: tuple[int, int], rank: int) -> Iterator[dict]:
    W = torch.randn(shape)
    p, q = defaults(rank, min(shape))
    name, _ = peer(W, rank, p, q)
    variants: Variants = {"randomized_svd": lambda: randomized_svd(W, rank), name: lambda: peer(W, rank, p, q)}
    yield from _timed(run, variants, name, shape, rank)


def _timed(run: Run, variants: Variants, against: str, shape: tuple[int, ...], rank: int) -> Iterator[dict]:
    for name, found in compared(interleaved(variants, run.seconds, LEAST), against).items():
        yield {"variant": name, **labels(shape, rank), "threads": torch.get_num_threads(), **found}
