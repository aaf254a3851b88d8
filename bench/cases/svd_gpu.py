"""The time of decompositions on a CUDA GPU: each driver against n, several matrices one by one and side by side, all of
Falcon3-1B, and of bases that a file keeps.

Matrices are random, of the shapes of the model: what torch takes for all of them is taken up from one of each shape,
and its row says so.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from bench.decompositions import PEERS, TORCH, arrangements, drivers, labels, peer, remainder, sketches, target
from bench.models import model
from bench.run import Run, untested
from bench.timing import synchronized
from gsr_kernels import SpectralBasis, load_bases, save_bases
from gsr_kernels.backends.cuda import SMALL, refusal
from gsr_kernels.linalg import randomized_svd
from gsr_kernels.linalg.side_by_side import bases_of

FALCON3_1B = model("falcon3-1b").shapes
# the largest side at which each is timed: gesvd takes tens of seconds beyond
SIDES = {"jacobi": SMALL, "polar": 4096, "gesvdj": 4096, "gesvd": 1024}
TALL = (8192, 2048)
# of an exact decomposition and of one of rank 256: the share of torch's time, and the seconds that a model may take
TARGETS = {None: (1 / 8, 8), 256: (1 / 5, 2)}
# matrices side by side
SEVERAL = 8
# the seconds that the runs of one comparison may take in all
PATIENCE = 2.0


def rows(run: Run) -> Iterator[dict]:
    run = replace(run, seconds=min(run.seconds, PATIENCE), least=1)
    absent = {"jacobi"} if refusal(run.device) else set()
    for n in (256, 512, 1024, 2048, 4096):
        yield from drivers(run, (n, n), [name for name, most in SIDES.items() if n <= most and name not in absent])
    yield from tall(run, TALL, 256)
    for n in (256, 1024, 2048):
        yield from arrangements(run, (SEVERAL, n, n))
    yield from arrangements(run, (SEVERAL, 2048, 2048), 256)
    if not run.dry:
        yield from whole(run.device, FALCON3_1B)
        yield from whole(run.device, FALCON3_1B, 256)
        yield from kept(run, FALCON3_1B, 256)


def tall(run: Run, shape: tuple[int, int], rank: int) -> Iterator[dict]:
    """Time a sketch and compare its error with the peer's."""
    for row in sketches(run, shape, rank):
        if row["variant"] == "randomized_svd" and not run.dry:
            W = torch.randn(shape, device=run.device)
            error = remainder(W, *randomized_svd(W, rank)[:3]) / remainder(W, *peer(W, rank))
            said = [target("time over the peer's", row["ratio"], TARGETS[256][0])]
            row["verdict"] = "; ".join([*said, target("error over it", error, 1.001)])
        yield row


def kept(run: Run, shapes: dict[tuple[int, int], int], rank: int) -> Iterator[dict]:
    """Time a second start: bases from their file, beside the same bytes."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.bases"
        bases = {
            f"{m}x{n}.{i}": SpectralBasis(torch.randn(m, k), torch.ones(k), torch.randn(k, n))
            for (m, n), count in shapes.items() for i in range(count) for k in [min(rank, m, n)]
        }  # fmt: skip
        save_bases(file, bases)
        variants = {
            "load_bases": lambda: load_bases(file, device=run.device),
            "its bytes": lambda: torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8).to(run.device),
        }
        described = {**labels((len(bases),), rank), "model": "falcon3-1b"}
        work = dict.fromkeys(variants, ())
        ours, other = run.compare(described, work, lambda: untested(variants), "its bytes")
    yield {**ours, "verdict": target("time over reading", ours["ratio"], 1.2)}
    yield other


def whole(device: torch.device, shapes: dict[tuple[int, int], int], rank: int | None = None) -> Iterator[dict]:
    """Time the bases of all matrices of a model, exactly or by a sketch, as attach() takes them and one by one."""
    weights = [torch.randn(shape, device=device) for shape, count in shapes.items() for _ in range(count)]
    if rank is None:
        name, to, theirs = "svd", TORCH, partial(torch.linalg.svd, full_matrices=False)
    else:
        name, to, theirs = "randomized_svd", PEERS[device.type], partial(peer, rank=rank)
    one_of_each = {tuple(W.shape): W for W in weights}
    sampled = sum(shapes[shape] * _twice(partial(theirs, W), device)[0] for shape, W in one_of_each.items())
    described = {"shape": f"{len(weights)} matrices", "model": "falcon3-1b", "dtype": "float32", "rank": rank or "full"}
    share, seconds = TARGETS[None if rank is None else 256]
    for variant, arrangement in ((name, None), (f"{name}, one by one", "1")):
        taken, held = _twice(partial(bases_of, weights, rank, arrangement), device)
        said = [target(f"time over {to}'s", taken / sampled, share), target("seconds", taken / 1e3, seconds)]
        found = {"p50_ms": round(taken, 1), "ratio": round(taken / sampled, 4), "ratio_to": to, "extra_mib": held >> 20}
        yield {"variant": variant, **described, **found, "verdict": "; ".join(said)}
    yield {"variant": f"{to}, extrapolated from one of each shape", **described, "p50_ms": round(sampled, 1)}


def _twice(run: Callable[[], object], device: torch.device) -> tuple[float, int]:
    """Return the milliseconds of the faster of two runs: in the second the arrangement of each kind is known.

    The bytes beside are what it held at its peak beyond what was there and the bases that it returned.
    """

    def once() -> tuple[float, int]:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        before, start = torch.cuda.memory_allocated(), synchronized(device)
        found = run()
        taken = (synchronized(device) - start) * 1e3
        own = sum(one.nbytes for one in found if isinstance(one, SpectralBasis))
        return taken, max(0, torch.cuda.max_memory_allocated() - before - own)

    return min(once(), once())
