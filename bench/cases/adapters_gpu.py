"""Adapters on the shapes of LLaMA-2-7B: PS-LoRA's loss and gradients, a merge of 15 tasks, EBLoRA's retraction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from bench.decompositions import svd_work
from bench.run import Makers, Run, Target, Trial, untested
from bench.transforms import error
from gsr_kernels.adapters.merging import merge
from gsr_kernels.adapters.stability import stability_loss
from gsr_kernels.cli.floors import Work
from gsr_kernels.linalg.polar import retract, tangent

MODULES, SIDE, RANK, TASKS = 64, 4096, 8, 14
ALPHA = 1e4
# of EBLoRA's adapters
COLUMNS = 16
TOLERANCE = 1e-4


def rows(run: Run) -> Iterator[dict]:
    ours, *dense = stability(run, MODULES, SIDE, TASKS)
    if not run.dry:
        ours["allowed_mib"] = round(dense[0].get("extra_mib", 0) / 100, 1)
    yield from (ours, *dense)
    yield from merging(run, MODULES, SIDE)
    yield from retraction(run, MODULES, SIDE)


def dense_loss(B: Tensor, A: Tensor, old_B: Tensor, old_A: Tensor, alpha: Tensor | float, terms: str) -> Tensor:
    """Return PS-LoRA's loss ``[..]`` of every module (equation 4) with whole matrices: see ``stability_loss``."""
    D, P = B @ A, old_B @ old_A
    scale = torch.as_tensor(alpha, dtype=D.dtype)[..., None, None]
    agreement = torch.tanh(scale * D) * torch.tanh(scale * P)
    entries = {"both": D.square() * (1 - agreement), "magnitude": D.square(), "sign": 1 - agreement}
    return entries[terms].sum((-2, -1))


def stability(run: Run, modules: int, side: int, tasks: int, unit: str = "tf32") -> Iterator[dict]:
    """Time the loss and both gradients. The dense form writes D, P and what autograd keeps of them."""
    labels = {"shape": f"{modules} x {side}x{side}, {tasks} earlier tasks", "dtype": "float32", "rank": RANK}
    # both products of the loss and two of its gradient; the factors and their gradients move once
    flop = 2 * modules * side**2 * RANK * (tasks + 3)
    ours = Work(flop, 4 * modules * 2 * side * RANK * (tasks + 2), unit)
    # at the least: D and P written, read for the loss and for its derivative, that written and read by two products
    dense = Work(flop, 9 * 4 * modules * side**2, "fp32")

    def make() -> Makers:
        factors = drawn(run.device, modules, side, tasks)
        B, A, old_B, old_A = factors
        trained = B.requires_grad_(), A.requires_grad_()
        P = old_B @ old_A
        one = [factor.detach()[:1].double() for factor in factors]
        one[0].requires_grad_()
        (truth,) = torch.autograd.grad(dense_loss(*one, ALPHA, "both").sum(), one[:1])
        found: list[Tensor] = []

        def trial(loss: Callable[[], Tensor]) -> Trial:
            def step() -> None:
                found[:] = torch.autograd.grad(loss().sum(), trained)

            return Trial(step, lambda: error(found[0][:1], truth), TOLERANCE)

        return {
            "stability_loss": lambda: trial(lambda: stability_loss(*factors, ALPHA)),
            "dense": lambda: trial(lambda: dense_loss(*factors, ALPHA, "both")),
            # P as a constant of the task, which takes the memory of the weights once more
            "dense, P kept": lambda: trial(
                lambda: (D := B @ A).square().mul(1 - torch.tanh(ALPHA * D) * torch.tanh(ALPHA * P))
            ),
        }

    work = {"stability_loss": [ours], "dense": [dense], "dense, P kept": []}
    targets = {"dense": [Target(5.0, "stability_loss", at_least=True)]}
    return run.compare(labels, work, make, "stability_loss", targets, peak=True)


def merging(run: Run, modules: int, side: int) -> Iterator[dict]:
    """Time a merge by magnitude, in place, beside what reads and writes the weights once."""
    tasks = TASKS + 1
    labels = {"shape": f"{modules} x {side}x{side}, {tasks} tasks", "dtype": "float32", "rank": RANK}
    moved = 2 * 4 * modules * side**2
    work = {
        "merge": [Work(2 * tasks * RANK * modules * side**2, moved + 8 * modules * tasks * side * RANK, "tf32")],
        "read and write": [Work(modules * side**2, moved, "fp32")],
    }

    def make() -> Makers:
        _, _, B, A = drawn(run.device, modules, side, tasks)
        B, A = B.unflatten(-1, (tasks, RANK)).movedim(-2, 1).contiguous(), A.unflatten(-2, (tasks, RANK))
        weights = torch.zeros(modules, side, side, device=run.device)
        truth = merge(weights[0].double(), B[0].double(), A[0].double(), backend="torch")

        def all_of_them() -> None:
            for W, left, right in zip(weights, B, A):
                merge(W, left, right)

        merged = Trial(all_of_them, lambda: error(weights[0], truth), TOLERANCE)
        return {"merge": lambda: merged, **untested({"read and write": lambda: weights.mul_(1.0)})}

    yield from run.compare(labels, work, make, "read and write", {"merge": [Target(3.0, "read and write")]})


def retraction(run: Run, modules: int, side: int) -> Iterator[dict]:
    """Time a step of orthonormal columns, all modules at once, beside an SVD of each."""
    labels = {"shape": f"{modules} x {side}x{COLUMNS}", "dtype": "float32", "rank": COLUMNS}

    def make() -> Makers:
        X = torch.linalg.qr(torch.randn(modules, side, COLUMNS, device=run.device)).Q
        D = tangent(X, 0.1 * torch.randn_like(X) / side**0.5)
        truth = _polar((X + D).double())
        found: list[Tensor] = [X]

        def by_products() -> None:
            found[0] = retract(X, D)

        def by_decompositions() -> None:
            found[0] = torch.stack([_polar(one) for one in X + D])

        def proof() -> float:
            return error(found[0], truth)

        variants = {"retract": by_products, "an SVD a module": by_decompositions}
        return {name: partial(Trial, each, proof, TOLERANCE) for name, each in variants.items()}

    # ten steps of two products, and the first Gram matrix
    products = 21 * 2 * modules * side * COLUMNS**2
    work = {
        "retract": [Work(products, 2 * 4 * modules * side * COLUMNS, "fp32")],
        "an SVD a module": modules * svd_work(side, COLUMNS),
    }
    targets = {"an SVD a module": [Target(5.0, "retract", at_least=True)]}
    yield from run.compare(labels, work, make, "retract", targets)


def drawn(device: torch.device, modules: int, side: int, tasks: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return B, A and those of the tasks side by side, of the size of real adapters."""
    shapes = [(side, RANK), (RANK, side), (side, tasks * RANK), (tasks * RANK, side)]
    B, A, old_B, old_A = (6e-3 * torch.randn(modules, *shape, device=device) for shape in shapes)
    return B, A, old_B, old_A


def _polar(M: Tensor) -> Tensor:
    U, _, Vh = torch.linalg.svd(M, full_matrices=False)
    return U @ Vh
