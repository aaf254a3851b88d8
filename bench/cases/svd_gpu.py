"""The time of decompositions on a CUDA GPU: each driver against n, several matrices one by one and side by side, all of
Falcon3-1B, and of bases that a file keeps.

Matrices are random, of the shapes of the model: what torch takes for all of them is taken up from one of each shape,
and its row says so.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from bench.decompositions import ARRANGED, DRIVEN, labels, peer, predicted, remainder, target
from bench.models import model
from bench.run import Run
from bench.timing import Variants
from gsr_kernels import SpectralBasis, load_bases, save_bases
from gsr_kernels.backends.cuda import SMALL, refusal
from gsr_kernels.linalg import randomized_svd, svd
from gsr_kernels.linalg.randomized_svd import defaults
from gsr_kernels.linalg.side_by_side import bases_of

FALCON3_1B = model("falcon3-1b").shapes
# the largest side at which each is timed: gesvd takes tens of seconds beyond
SIDES = {"jacobi": SMALL, "polar": 4096, "gesvdj": 4096, "gesvd": 1024}
TALL = (8192, 2048)
# of an exact decomposition and of one of rank 256: the share of torch's time, and the seconds that a model may take
TARGETS = {None: (1 / 8, 8), 256: (1 / 5, 2)}
# matrices side by side
SEVERAL = 8
# the seconds that the runs of one variant may take in all
PATIENCE = 2.0


def rows(run: Run) -> Iterator[dict]:
    if run.dry:
        yield from predicted(run, list(FALCON3_1B), [TALL])
        return
    if not run.on_gpu:
        raise RuntimeError("svd_gpu needs a CUDA device: run `python -m bench --case svd_gpu` on a machine with one")
    parts = [lambda n=n: drivers(run.device, n) for n in (256, 512, 1024, 2048, 4096)]
    parts += [lambda: tall(run.device, TALL, 256)]
    parts += [lambda n=n: side_by_side(run.device, n) for n in (256, 1024, 2048)]
    parts += [lambda: side_by_side(run.device, 2048, 256)]
    parts += [lambda: whole(run.device, FALCON3_1B), lambda: whole(run.device, FALCON3_1B, 256)]
    parts += [lambda: kept(run.device, FALCON3_1B, 256)]
    for part in tqdm(parts, "decompositions", leave=False, disable=None):
        yield from part()


def drivers(device: torch.device, n: int) -> Iterator[dict]:
    W = torch.randn(n, n, device=device)
    chosen = [name for name, most in SIDES.items() if n <= most]
    if "jacobi" in chosen and refusal(device):
        chosen.remove("jacobi")
    variants: Variants = {DRIVEN + name: lambda name=name: svd(W, name) for name in chosen}
    variants["torch.linalg.svd"] = lambda: torch.linalg.svd(W, full_matrices=False)
    yield from _compared(variants, "torch.linalg.svd", (n, n), n)


def tall(device: torch.device, shape: tuple[int, int], rank: int) -> Iterator[dict]:
    """Time a sketch, beside torch's with the same oversampling and power iterations."""
    W = torch.randn(shape, device=device)
    p, q = defaults(rank, min(shape))
    name, theirs = peer(W, rank, p, q)
    error = remainder(W, *randomized_svd(W, rank)[:3]) / remainder(W, *theirs)
    variants: Variants = {"randomized_svd": lambda: randomized_svd(W, rank), name: lambda: peer(W, rank, p, q)}
    ours, other = _compared(variants, name, shape, rank)
    said = [target("time over the peer's", ours["ratio"], TARGETS[256][0]), target("error over it", error, 1.001)]
    yield {**ours, "verdict": "; ".join(said)}
    yield other


def kept(device: torch.device, shapes: dict[tuple[int, int], int], rank: int) -> Iterator[dict]:
    """Time a second start: bases from their file, beside the same bytes."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.bases"
        bases = {
            f"{m}x{n}.{i}": SpectralBasis(torch.randn(m, k), torch.ones(k), torch.randn(k, n))
            for (m, n), count in shapes.items() for i in range(count) for k in [min(rank, m, n)]
        }  # fmt: skip
        save_bases(file, bases)
        variants: Variants = {
            "load_bases": lambda: load_bases(file, device=device),
            "its bytes": lambda: torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8).to(device),
        }
        ours, other = _compared(variants, "its bytes", (len(bases),), rank)
    yield {**ours, "model": "falcon3-1b", "verdict": target("time over reading", ours["ratio"], 1.2)}
    yield {**other, "model": "falcon3-1b"}


def side_by_side(device: torch.device, n: int, rank: int | None = None) -> Iterator[dict]:
    """Time equal matrices in each arrangement."""
    weights = torch.randn(SEVERAL, n, n, device=device).unbind()
    name = "svd" if rank is None else "randomized_svd"
    variants: Variants = {f"{name}, {how}": lambda to=to: bases_of(weights, rank, to) for how, to in ARRANGED.items()}
    yield from _compared(variants, f"{name}, one by one", (SEVERAL, n, n), rank or n)


def whole(device: torch.device, shapes: dict[tuple[int, int], int], rank: int | None = None) -> Iterator[dict]:
    """Time the bases of all matrices of a model, exactly or by a sketch, as attach() takes them and one by one."""

    def other(W: torch.Tensor) -> object:
        return (
            torch.linalg.svd(W, full_matrices=False) if rank is None else peer(W, rank, *defaults(rank, min(W.shape)))
        )

    weights = [torch.randn(shape, device=device) for shape, count in shapes.items() for _ in range(count)]
    one_of_each = {W.shape: W for W in weights}
    sampled = sum(shapes[tuple(shape)] * _milliseconds(lambda W=W: other(W)) for shape, W in one_of_each.items())
    name, to = ("svd", "torch.linalg.svd") if rank is None else ("randomized_svd", "torch.svd_lowrank")
    described = {"shape": f"{len(weights)} matrices", "model": "falcon3-1b", "dtype": "float32", "rank": rank or "full"}
    share, seconds = TARGETS[None if rank is None else 256]
    for variant, arrangement in ((name, None), (f"{name}, one by one", "1")):
        # a second run, when the arrangement of each kind is known
        taken, extra = min(_once(lambda to=arrangement: bases_of(weights, rank, to)) for _ in range(2))
        said = [target(f"time over {to}'s", taken / sampled, share), target("seconds", taken / 1e3, seconds)]
        found = {"p50_ms": round(taken, 1), "ratio": round(taken / sampled, 4), "ratio_to": to, "extra_mib": extra}
        yield {"variant": variant, **described, **found, "verdict": "; ".join(said)}
    yield {"variant": f"{to}, extrapolated from one of each shape", **described, "p50_ms": round(sampled, 1)}


def _once(run: Callable[[], list[SpectralBasis]]) -> tuple[float, int]:
    """Return the milliseconds of a run, and the MiB that it held at its peak beyond what was there and its bases."""
    before = 0
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    start = _now()
    bases = run()
    taken = (_now() - start) * 1e3
    if not torch.cuda.is_available():
        return taken, 0
    held = torch.cuda.max_memory_allocated() - before - sum(basis.nbytes for basis in bases)
    return taken, held >> 20


def _compared(variants: Variants, against: str, shape: tuple[int, ...], rank: int) -> Iterator[dict]:
    times = {name: _milliseconds(run) for name, run in variants.items()}
    for name, taken in times.items():
        ratio = {"ratio": round(taken / times[against], 4), "ratio_to": against}
        yield {"variant": name, **labels(shape, rank), "p50_ms": round(taken, 3), **ratio}


def _milliseconds(run: Callable[[], object]) -> float:
    """Return the median of five runs, or of as many as patience allows, after one that warms up."""
    run()
    times: list[float] = []
    while not times or (len(times) < 5 and sum(times) < PATIENCE * 1e3):
        start = _now()
        run()
        times.append((_now() - start) * 1e3)
    return sorted(times)[len(times) // 2]


def _now() -> float:
    """Return the time, when the device has done what it was asked for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
