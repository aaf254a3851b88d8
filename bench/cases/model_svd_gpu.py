"""The time of the bases of all matrices of a model on a CUDA GPU, decomposed or read from their file.

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

from bench.decompositions import PEERS, TORCH, labels, peer, sketch_work, svd_work, target
from bench.models import Model
from bench.run import Run, untested
from bench.timing import synchronized
from gsr_kernels import SpectralBasis, load_bases, save_bases
from gsr_kernels.linalg.side_by_side import bases_of

# of an exact decomposition and of one of a rank: the share of torch's time, and the seconds that a model may take
RANK = 256
TARGETS = {None: (1 / 8, 8), RANK: (1 / 5, 2)}
# the seconds that the runs of one comparison may take in all
PATIENCE = 2.0


def rows(run: Run) -> Iterator[dict]:
    model = run.setting.model
    if run.dry:
        work = {"svd": [], "randomized_svd": []}
        for m, n in model.matrices:
            work["svd"] += svd_work(m, n)
            work["randomized_svd"] += sketch_work(m, n, RANK)
        yield from run.compare({"model": model.name, "shape": f"{len(model.matrices)} matrices"}, work, dict, "svd")
        return
    yield from whole(run.device, model)
    yield from whole(run.device, model, RANK)
    yield from kept(replace(run, seconds=min(run.seconds, PATIENCE), least=1), model, RANK)


def kept(run: Run, model: Model, rank: int) -> Iterator[dict]:
    """Time a second start: bases from their file, beside the same bytes."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.bases"
        bases = {
            f"{m}x{n}.{i}": SpectralBasis(torch.randn(m, k), torch.ones(k), torch.randn(k, n))
            for i, (m, n) in enumerate(model.matrices) for k in [min(rank, m, n)]
        }  # fmt: skip
        save_bases(file, bases)
        variants = {
            "load_bases": lambda: load_bases(file, device=run.device),
            "its bytes": lambda: torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8).to(run.device),
        }
        described = {**labels((len(bases),), rank), "model": model.name}
        work = dict.fromkeys(variants, ())
        ours, other = run.compare(described, work, lambda: untested(variants), "its bytes")
    yield {**ours, "verdict": target("time over reading", ours["ratio"], 1.2)}
    yield other


def whole(device: torch.device, model: Model, rank: int | None = None) -> Iterator[dict]:
    """Time the bases of all matrices of a model, exactly or by a sketch, as attach() takes them and one by one."""
    weights = [torch.randn(shape, device=device) for shape in model.matrices]
    if rank is None:
        name, to, theirs = "svd", TORCH, partial(torch.linalg.svd, full_matrices=False)
    else:
        name, to, theirs = "randomized_svd", PEERS[device.type], partial(peer, rank=rank)
    one_of_each = {tuple(W.shape): W for W in weights}
    sampled = sum(model.shapes[shape] * _twice(partial(theirs, W), device)[0] for shape, W in one_of_each.items())
    described = {"shape": f"{len(weights)} matrices", "model": model.name, "dtype": "float32", "rank": rank or "full"}
    share, seconds = TARGETS[None if rank is None else RANK]
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
