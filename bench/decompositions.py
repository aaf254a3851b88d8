"""Matrices of known spectra and the errors of their decompositions, in float64."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from bench.run import Run
from gsr_kernels.backends.torch.sketch import omega
from gsr_kernels.cli.floors import Work
from gsr_kernels.linalg.randomized_svd import defaults
from gsr_kernels.linalg.side_by_side import ARRANGEMENTS

# how the variants of the exact SVD begin, a driver each
DRIVEN = "svd "

# the ways to decompose several, by the names of their variants
ARRANGED = {
    {"1": "one by one", "batch": "as a batch"}.get(name, f"{name} at once"): name for name in ARRANGEMENTS
}  # fmt: skip


def spectrum(kind: str, r: int, condition: float = 1e5) -> Tensor:
    """Return r singular values.

    ``log`` and ``linear`` go from 1 to 1 / condition, ``flat`` down a line, with a few outliers, ``decaying`` is 1 / i.
    """
    if kind == "log":
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
    """Return residual (Frobenius, relative), orthogonality (largest entry of QᵀQ − I), largest relative error of σ."""
    rebuilt = (U.double() * S.double()) @ Vh.double()
    identity = torch.eye(len(S), dtype=torch.float64, device=W.device)
    defects = [(Q.mT @ Q - identity).abs().max().item() for Q in (U.double(), Vh.mT.double())]
    return {
        "residual": (torch.linalg.norm(W - rebuilt) / torch.linalg.norm(W.double())).item(),
        "orthogonality": max(defects),
        "sigma_error": ((S - truth) / truth).abs().max().item(),
    }


def labels(shape: Sequence[int], rank: int) -> dict[str, object]:
    """Return the labels of a row of float32 matrices."""
    return {"shape": "x".join(map(str, shape)), "dtype": "float32", "rank": rank}


def target(name: str, value: float, bound: float) -> str:
    """Say in a few words whether it is met."""
    return f"{name} {value:.4g}, target <= {bound:.4g}: {'met' if value <= bound else 'missed'}"


def peer(W: Tensor, rank: int, p: int, q: int) -> tuple[str, tuple[Tensor, ...]]:
    """Return U, S, Vh of another library: scikit-learn's from the same Ω on a CPU, on a GPU torch's with its own."""
    if W.device.type == "cuda":
        U, S, V = torch.svd_lowrank(W, q=rank + p, niter=q)
        return "torch.svd_lowrank", (U[:, :rank], S[:rank], V[:, :rank].mT)
    from sklearn.utils.extmath import randomized_svd

    factors = randomized_svd(W.numpy(), rank, n_oversamples=p, n_iter=q, random_state=OurOmega())
    return "sklearn randomized_svd", tuple(map(torch.from_numpy, factors))


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


def predicted(run: Run, exact: Sequence[tuple[int, int]], randomized: Sequence[tuple[int, int]]) -> Iterator[dict]:
    """Yield the rows of a dry run."""
    jobs = [("svd", shape, min(shape), svd_work(*shape)) for shape in exact]
    jobs += [("randomized_svd", shape, rank, sketch_work(*shape, rank)) for shape in randomized for rank in (256, 64)]
    for name, (m, n), rank, work in jobs:
        yield from run.compare(labels((m, n), rank), {name: work}, dict, name)
