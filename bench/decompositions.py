"""Decompositions: matrices of known spectra, errors in float64, and the comparisons that both kinds of device share."""

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from bench.run import Makers, Run, judged, untested
from gsr_kernels.backends.torch.sketch import omega
from gsr_kernels.cli.floors import Work
from gsr_kernels.linalg import randomized_svd, svd
from gsr_kernels.linalg.randomized_svd import defaults
from gsr_kernels.linalg.side_by_side import ARRANGEMENTS, bases_of

TORCH = "torch.linalg.svd"
# who else computes a randomized SVD, on each kind of device
PEERS = {"cpu": "sklearn randomized_svd", "cuda": "torch.svd_lowrank"}
# how the variants of the exact SVD begin, a driver each
DRIVEN = "svd "

# the ways to decompose several, by the names of their variants
ARRANGED = {
    {"1": "one by one", "batch": "as a batch"}.get(name, f"{name} at once"): name for name in ARRANGEMENTS
}  # fmt: skip


def spectrum(kind: str, r: int, condition: float = 1e5) -> Tensor:
    """Return r singular values.

    ``log``, ``diagonal`` and ``linear`` go from 1 to 1 / condition, ``flat`` down a line, with a few outliers,
    ``decaying`` is 1 / i.
    """
    if kind in ("log", "diagonal"):
        return torch.logspace(0, -math.log10(condition), r, dtype=torch.float64)
    if kind == "linear":
        return torch.linspace(1, 1 / condition, r, dtype=torch.float64)
    i = torch.arange(1, r + 1, dtype=torch.float64)
    return 1 / i if kind == "decaying" else 1 - 0.9 * (i - 1) / r + 4 / i


def matrix(m: int, n: int, S: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a random ``[m, n]`` of that spectrum."""
    U, V = (torch.linalg.qr(torch.randn(side, len(S), dtype=torch.float64, device=S.device)).Q for side in (m, n))
    return ((U * S) @ V.T).to(dtype)


def exact_errors(W: Tensor, truth: Tensor, U: Tensor, S: Tensor, Vh: Tensor) -> dict[str, float]:
    """Return residual (Frobenius, relative), orthogonality (see ``defect``), largest relative error of σ."""
    rebuilt = (U.double() * S.double()) @ Vh.double()
    return {
        "residual": (torch.linalg.norm(W - rebuilt) / torch.linalg.norm(W.double())).item(),
        "orthogonality": defect(U, Vh),
        "sigma_error": ((S - truth) / truth).abs().max().item(),
    }


def defect(U: Tensor, Vh: Tensor) -> float:
    """Return the largest entry of UᵀU − I and V Vᵀ − I."""
    identity = torch.eye(U.shape[-1], dtype=torch.float64, device=U.device)
    return max((Q.mT @ Q - identity).abs().max().item() for Q in (U.double(), Vh.mT.double()))


def labels(shape: Sequence[int], rank: int) -> dict[str, object]:
    """Return the labels of a row of float32 matrices."""
    return {"shape": "x".join(map(str, shape)), "dtype": "float32", "rank": rank}


def target(name: str, value: float, bound: float) -> str:
    """Name a value and say whether it is met."""
    return judged(f"{name} {value:.4g}", value, bound)


def peer(W: Tensor, rank: int) -> tuple[Tensor, ...]:
    """Return U, S, Vh of ``PEERS`` with our oversampling and power iterations.

    scikit-learn's begins with the same Ω, torch's draws its own.
    """
    p, q = defaults(rank, min(W.shape))
    if W.device.type == "cuda":
        U, S, V = torch.svd_lowrank(W, q=rank + p, niter=q)
        return U[:, :rank], S[:rank], V[:, :rank].mT
    from sklearn.utils.extmath import randomized_svd as by_sklearn

    factors = by_sklearn(W.numpy(), rank, n_oversamples=p, n_iter=q, random_state=OurOmega())
    return tuple(map(torch.from_numpy, factors))


class OurOmega(np.random.RandomState):
    """A random state by which scikit-learn starts from the Ω of ``gsr_kernels.randomized_svd``."""

    def normal(self, size: tuple[int, int]) -> np.ndarray:  # type: ignore[override]
        return omega(*size, seed=0, kind="gaussian").numpy()


def remainder(W: Tensor, U: Tensor, S: Tensor, Vh: Tensor) -> float:
    """Return ``‖W − U diag(S) Vh‖`` in the spectral norm."""
    return torch.linalg.svdvals(W - (U * S) @ Vh)[0].item()


def energy(sigma: Tensor, S: Tensor) -> float:
    """Return the share of the energy of the top directions that was captured."""
    return (sigma.double().square().sum() / S[: len(sigma)].square().sum()).item()


def svd_work(m: int, n: int) -> list[Work]:
    """Return a thin SVD by a QR decomposition, 6 m n² + 20 n³ FLOP for m >= n (Golub and Van Loan, section 8.6)."""
    m, n = max(m, n), min(m, n)
    return [Work(6 * m * n**2 + 20 * n**3, 4 * (2 * m * n + n * n + n), "fp32")]


def sketch_work(m: int, n: int, rank: int) -> list[Work]:
    """Return the products with W of a randomized SVD with the default oversampling and power iterations."""
    p, q = defaults(rank, min(m, n))
    return [Work(2 * m * n * (rank + p), 4 * (m * n + (m + n) * (rank + p)), "fp32")] * (2 * q + 2)


def drivers(run: Run, shape: Sequence[int], names: Iterable[str]) -> Iterator[dict]:
    """Time drivers of the exact SVD, beside torch's own."""
    *batch, m, n = shape

    def make() -> Makers:
        W = torch.randn(shape, device=run.device)
        ours = {DRIVEN + name: partial(svd, W, name) for name in names}
        return untested({**ours, TORCH: lambda: torch.linalg.svd(W, full_matrices=False)})

    work = {**{DRIVEN + name: [] for name in names}, TORCH: math.prod(batch) * svd_work(m, n)}
    return run.compare(labels(shape, min(m, n)), work, make, TORCH)


def sketches(run: Run, shape: tuple[int, int], rank: int) -> Iterator[dict]:
    """Time a randomized SVD, beside the peer's."""
    theirs = PEERS[run.device.type]

    def make() -> Makers:
        W = torch.randn(shape, device=run.device)
        return untested({"randomized_svd": lambda: randomized_svd(W, rank), theirs: lambda: peer(W, rank)})

    work = {"randomized_svd": sketch_work(*shape, rank), theirs: []}
    return run.compare(labels(shape, rank), work, make, theirs)


def arrangements(run: Run, shape: tuple[int, int, int], rank: int | None = None) -> Iterator[dict]:
    """Time equal matrices in each arrangement."""
    name = "svd" if rank is None else "randomized_svd"
    ways = {f"{name}, {how}": arrangement for how, arrangement in ARRANGED.items()}

    def make() -> Makers:
        weights = torch.randn(shape, device=run.device).unbind()
        return untested({way: partial(bases_of, weights, rank, arrangement) for way, arrangement in ways.items()})

    work = dict.fromkeys(ways, ())
    return run.compare(labels(shape, rank or min(shape[-2:])), work, make, f"{name}, one by one")
