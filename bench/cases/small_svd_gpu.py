"""126 small decompositions at once: the CUDA extension beside cuSOLVER."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from bench.decompositions import defect, matrix, spectrum
from bench.run import Makers, Run, Target, Trial, untested
from gsr_kernels.backends import cuda
from gsr_kernels.cli.floors import Work
from gsr_kernels.ops import implementation

# as many as Falcon3-1B has matrices
COUNT = 126
SIDES = (64, 128, 256)
PEERS = {
    "torch.linalg.eigh": torch.linalg.eigh,
    "torch.linalg.svd": torch.linalg.svd,
    "torch.linalg.svd, gesvdj": lambda A: torch.linalg.svd(A, driver="gesvdj"),
}
# seen on a CPU for the matrices below, and in how many of the sweeps a pair is turned
SWEEPS, TURNED = 14, 8.5
# of the largest entry of QᵀQ − I
ORTHOGONAL = 5e-6


def rows(run: Run) -> Iterator[dict]:
    if run.on_gpu and (reason := cuda.refusal(torch.device("cuda", torch.cuda.current_device()))):
        raise RuntimeError(f"{reason}: `python -m bench.gpu build` builds it")
    # cuSOLVER may take seconds a turn
    few = replace(run, least=2)
    for k in SIDES:
        labels = {"shape": f"{COUNT} x {k}x{k}", "dtype": "float32"}
        work = {"small_svd": [of(COUNT, k)], **dict.fromkeys(PEERS, ())}
        targets = {"small_svd": [Target(1 / 3, peer) for peer in PEERS]}
        yield from few.compare(labels, work, partial(makers, run.device, k), "torch.linalg.eigh", targets)


def of(count: int, k: int) -> Work:
    """Return the work: three products of a pair's rows in each sweep, and for a turn four fused steps an element."""
    pairs = count * k * (k - 1) // 2
    return Work(int(pairs * k * (6 * SWEEPS + 16 * TURNED)), count * 4 * (3 * k * k + k), "fp32")


def makers(device: torch.device, k: int) -> Makers:
    """Return the variants, on the positive definite matrices of condition 1e3 that a polar decomposition leaves."""
    # made on the CPU, in float64
    factor = torch.stack([matrix(k, k, spectrum("log", k, 1e3).sqrt()) for _ in range(COUNT)])
    A = (factor @ factor.mT).to(device)

    def jacobi() -> Trial:
        compute, kept = implementation("small_svd", "cuda", A.device), {}
        return Trial(lambda: kept.update(out=compute(A)), lambda: _defect(*kept["out"]), ORTHOGONAL)

    return {"small_svd": jacobi, **untested({name: partial(peer, A) for name, peer in PEERS.items()})}


def _defect(U: Tensor, S: Tensor, Vh: Tensor, sweeps: Tensor) -> float:
    """Return the largest defect, NaN where one did not converge."""
    return defect(U, Vh) if (sweeps > 0).all() else torch.nan
