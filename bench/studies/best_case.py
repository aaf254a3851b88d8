"""GSR's own idea at its best case: does sharing out the diagonal's energy keep more where there is much to share?

One linear weight ``W_0 = U diag(σ) Vᵀ`` with ``σ_i = i^-α``. What it knew is its answers to inputs that lie along its
own singular directions, of covariance ``V diag(σ²) Vᵀ``. The new task is a weight at a tenth of ‖W_0‖_F from it, on
white inputs; a chosen share of the way there lies on the diagonal of ``Uᵀ (W − W_0) V``, which GSR rescales.
Forgotten is the share of the old answers' energy that is wrong where nine tenths of the new task are learned.
"""

from __future__ import annotations

import csv
import statistics
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from bench.docs.pages import grouped, table
from bench.results import RESULTS
from bench.studies import stats
from bench.studies.tables import chance, spread
from gsr_kernels import SpectralBasis, rescale_gradient

ROWS = RESULTS / "best_case.csv"
SEEDS, SIDE, STEPS, LEFT, AWAY = 16, 32, 160, 0.1, 0.1
# a flat spectrum, and heavier and heavier tails
DECAYS = (0.0, 0.5, 1.0, 2.0)
# that of a random direction first
SHARES = (1 / SIDE, 0.1, 0.5, 1.0)
OPTIMIZERS = ("gradient descent", "AdamW")
COLUMNS = ("optimizer", "decay", "share", "rho", "seed", "moved", "forgotten")


def run() -> None:
    """Make all rows and keep them."""
    cells = [(optimizer, decay, share) for optimizer in OPTIMIZERS for decay in DECAYS for share in SHARES]
    with ROWS.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(COLUMNS)
        for cell in tqdm(cells, unit="cell"):
            for rho in (0, 1):
                moved, forgotten = learn(*cell, rho)
                for seed in range(SEEDS):
                    rows.writerow([*cell, rho, seed, f"{moved[seed]:.4f}", f"{forgotten[seed]:.6g}"])


def learn(optimizer: str, decay: float, share: float, rho: float) -> tuple[Tensor, Tensor]:
    """Return of each seed the mean share of the gradient's energy that GSR moved, and what was forgotten.

    NaN is forgotten where the task was not learned in ``STEPS``.
    """
    generator = torch.Generator().manual_seed(0)

    def drawn() -> Tensor:
        return torch.randn(SEEDS, SIDE, SIDE, generator=generator, dtype=torch.float64)

    U, V = torch.linalg.qr(drawn()).Q, torch.linalg.qr(drawn()).Q
    S = torch.arange(1, SIDE + 1, dtype=torch.float64).pow(-decay).expand(SEEDS, SIDE)
    start = U * S.unsqueeze(-2) @ V.mT
    basis = SpectralBasis(U, S.contiguous(), V.mT.contiguous())
    on, off = torch.diag_embed(drawn().diagonal(dim1=-2, dim2=-1)), drawn()
    off -= torch.diag_embed(off.diagonal(dim1=-2, dim2=-1))
    way = share**0.5 * on / _size(on) + (1 - share) ** 0.5 * off / _size(off)
    target = start + AWAY * _size(start) * (U @ way @ V.mT)

    # a step of either is about a twentieth of the way
    W = start.clone().requires_grad_()
    rate = 0.05 * AWAY * float(_size(start).mean()) / SIDE
    stepper = torch.optim.AdamW([W], lr=rate, weight_decay=0) if optimizer == "AdamW" else torch.optim.SGD([W], lr=0.05)
    left, forgotten, moved = [], [], []
    known = _size(start @ V * S.unsqueeze(-2))
    for _ in range(STEPS):
        with torch.no_grad():
            G = W - target
            left.append((_size(G) / _size(target - start)).square().flatten())
            forgotten.append((_size((W - start) @ V * S.unsqueeze(-2)) / known).square().flatten())
            W.grad = rescale_gradient(G, basis, rho, "keep")
            if left[-1].max() > LEFT:
                moved.append((_size(W.grad - G) / _size(G)).square().flatten())
        stepper.step()
    return torch.stack(moved).mean(0), _at(torch.stack(left), torch.stack(forgotten))


def _at(left: Tensor, forgotten: Tensor) -> Tensor:
    """Return what was forgotten where ``LEFT`` was first reached, on a line between two steps."""
    found = torch.full((SEEDS,), torch.nan, dtype=torch.float64)
    for seed in range(SEEDS):
        reached = (left[:, seed] <= LEFT).nonzero()
        if len(reached):
            after = int(reached[0])
            (high, low), (a, b) = left[after - 1 : after + 1, seed], forgotten[after - 1 : after + 1, seed]
            found[seed] = a + (high - LEFT) / (high - low) * (b - a)
    return found


def _size(X: Tensor) -> Tensor:
    return X.flatten(1).norm(dim=1)[:, None, None]


def described(file: Path = ROWS) -> str:
    """Return the table: by how much more is forgotten under ρ 1 than under ρ 0, in percent, paired by seed."""
    with file.open(newline="", encoding="utf-8") as lines:
        found = grouped(csv.DictReader(lines), "optimizer", "decay", "share")
    judged, moved = {}, {}
    for cell, rows in found.items():
        bare, rescaled = ([float(row["forgotten"]) for row in rows if row["rho"] == rho] for rho in "01")
        name = ", ".join(cell)
        judged[name] = stats.compare([b / a for a, b in zip(bare, rescaled)], [1.0] * len(bare), 0.02)
        moved[name] = statistics.fmean(float(row["moved"]) for row in rows if row["rho"] == "1")
    adjusted = stats.holm({name: each.p for name, each in judged.items()})
    shown = []
    for (optimizer, decay, share), (name, each) in zip(found, judged.items()):
        ratio = [spread(each.difference), chance(adjusted[name]), f"{100 * each.detectable:.1f}"]
        shown.append([optimizer, f"{float(decay):g}", f"{float(share):.0%}", f"{moved[name]:.1%}", *ratio])
    header = ["way on the diagonal", "gradient moved", "forgotten more by ρ 1, %", "p, Holm", "detectable"]
    return table(["optimizer", "α", *header], shown)
