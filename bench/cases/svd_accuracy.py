"""The accuracy of decompositions on this device: exact against float64, randomized against the best of their rank."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
from tqdm import tqdm

from bench.decompositions import (
    DRIVEN,
    PEERS,
    drivers,
    energy,
    exact_errors,
    labels,
    matrix,
    peer,
    remainder,
    sketches,
    spectrum,
    target,
)
from bench.run import Run
from gsr_kernels.linalg import randomized_svd, svd
from gsr_kernels.linalg.randomized_svd import defaults

# a CPU's take two minutes
EXACT = {
    "cpu": [(1024, 1024), (2048, 512), (512, 2048)],
    "cuda": [(2048, 2048), (8192, 2048), (1024, 4096)],
}
RANDOMIZED = {"cpu": [(1024, 1024), (2048, 2048)], "cuda": [(1024, 1024), (2048, 2048), (4096, 2048)]}
# of a diagonal matrix, whose small σ LAPACK's divide and conquer loses from 26 rows on
GRADED = (64, 64), 1e12
CONDITIONS = (1e2, 1e3, 1e4, 1e5)
RANKS = (256, 64)
DRIVERS = {"cpu": ("gram", "gesdd", "polar"), "cuda": ("polar", "gesvdj")}


def rows(run: Run) -> Iterator[dict]:
    device = "cuda" if run.dry else run.device.type
    for shape in tqdm(EXACT[device], "exact", leave=False, disable=None):
        if run.dry:
            yield from drivers(run, shape, ())
            continue
        for kind, condition in product(("log", "linear"), CONDITIONS):
            yield from exact(run.device, shape, kind, condition)
    if not run.dry:
        yield from exact(run.device, GRADED[0], "diagonal", GRADED[1])
    for shape, rank in tqdm(list(product(RANDOMIZED[device], RANKS)), "randomized", leave=False, disable=None):
        if run.dry:
            yield from sketches(run, shape, rank)
            continue
        for kind in ("flat", "decaying"):
            yield from randomized(run.device, shape, kind, rank)


def exact(device: torch.device, shape: tuple[int, int], kind: str, condition: float) -> Iterator[dict]:
    """Yield a row for each driver. The target of σ is three times the error of torch.linalg.svd in float32."""
    S = spectrum(kind, min(shape), condition).to(device)
    W = torch.diag(S).float() if kind == "diagonal" else matrix(*shape, S)
    truth = torch.linalg.svdvals(W.double())
    of_torch = ((torch.linalg.svd(W, full_matrices=False).S - truth) / truth).abs().max().item()
    for driver in DRIVERS[device.type]:
        errors = exact_errors(W, truth, *svd(W, driver))
        bounds = {"orthogonality": 1e-5, "residual": 5e-6, "sigma_error": 3 * of_torch}
        yield {
            **labels(shape, min(shape)),
            "variant": DRIVEN + driver,
            "spectrum": f"{kind} {condition:.0e}",
            **{name: float(f"{value:.2e}") for name, value in errors.items()},
            "sigma_error_of_torch": float(f"{of_torch:.2e}"),
            "verdict": "; ".join(target(name, errors[name], bound) for name, bound in bounds.items()),
        }


def randomized(device: torch.device, shape: tuple[int, int], kind: str, rank: int) -> Iterator[dict]:
    """Yield a sketch with default parameters and its peer. Captured energy has a target on decaying spectra."""
    S = spectrum(kind, min(shape)).to(device)
    W = matrix(*shape, S)
    p, q = defaults(rank, min(shape))
    name = PEERS[device.type]
    found = {"randomized_svd": randomized_svd(W, rank)[:3], name: peer(W, rank)}
    errors = {variant: remainder(W, *factors) / S[rank].item() for variant, factors in found.items()}
    for variant, (_, sigma, _) in found.items():
        share = energy(sigma, S)
        said = [
            target("error over the best", errors[variant], 1.05),
            target(f"over {name}'s", errors[variant] / errors[name], 1.001),
        ]
        if kind == "decaying":
            said.append(target("lost energy", 1 - share, 0.01))
        yield {
            "variant": variant, **labels(shape, rank), "spectrum": f"{kind}, p = {p}, q = {q}",
            "spectral_error": round(errors[variant], 4), "energy": round(share, 4),
            "verdict": "; ".join(said) if variant == "randomized_svd" else "",
        }  # fmt: skip
