"""The time of decompositions on a CUDA GPU: each driver against n, several matrices one by one and side by side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from bench.cases.model_svd_gpu import PATIENCE, TARGETS
from bench.decompositions import arrangements, drivers, peer, remainder, sketches, target
from bench.run import Run
from gsr_kernels.backends.cuda import SMALL, refusal
from gsr_kernels.linalg import randomized_svd

# the largest side at which each is timed: gesvd takes tens of seconds beyond
SIDES = {"jacobi": SMALL, "polar": 4096, "gesvdj": 4096, "gesvd": 1024}
TALL = (8192, 2048)
# matrices side by side
SEVERAL = 8


def rows(run: Run) -> Iterator[dict]:
    run = replace(run, seconds=min(run.seconds, PATIENCE), least=1)
    absent = {"jacobi"} if refusal(run.device) else set()
    for n in (256, 512, 1024, 2048, 4096):
        yield from drivers(run, (n, n), [name for name, most in SIDES.items() if n <= most and name not in absent])
    yield from tall(run, TALL, 256)
    for n in (256, 1024, 2048):
        yield from arrangements(run, (SEVERAL, n, n))
    yield from arrangements(run, (SEVERAL, 2048, 2048), 256)


def tall(run: Run, shape: tuple[int, int], rank: int) -> Iterator[dict]:
    """Time a sketch and compare its error with the peer's."""
    for row in sketches(run, shape, rank):
        if row["variant"] == "randomized_svd" and not run.dry:
            W = torch.randn(shape, device=run.device)
            error = remainder(W, *randomized_svd(W, rank)[:3]) / remainder(W, *peer(W, rank))
            said = [target("time over the peer's", row["ratio"], TARGETS[256][0])]
            row["verdict"] = "; ".join([*said, target("error over it", error, 1.001)])
        yield row
