"""Adapters on the shapes of LLaMA-2-7B: PS-LoRA's loss and gradients, a merge of 15 tasks, EBLoRA's retraction."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bench.decompositions import svd_work
from bench.run import Makers, Run, Target, Trial
from bench.transforms import error
from gsr_kernels.adapters.merging import merge
from gsr_kernels.adapters.stability import stability_loss
from gsr_kernels.cli.floors import Work
from gsr_kernels.linalg.polar import retract, tangent
from python_tests.adapters import reference

MODULES, SIDE, RANK, TASKS = 64, 4096, 8, 14
ALPHA = 1e4
# of EBLoRA's adapters
COLUMNS = 16
TOLERANCE = 1e-4


def rows(run: Run) -> Iterator[dict]:
    if not (run.dry or run.on_gpu):
        raise RuntimeError("adapters_gpu needs a CUDA device: run `python -m bench --case adapters_gpu` on one")
    for part in (stability, merging, retraction):
        yield from part(run, MODULES, SIDE)


def stability(run: Run, modules: int, side: int) -> Iterator[dict]:
    """Time the loss and both gradients. The dense form writes D, P and what autograd keeps of them."""
    labels, ours = stability_labels(modules, side, RANK, TASKS), stability_work(modules, side, RANK, TASKS, "tf32")
    extra: dict[str, int] = {}

    def make() -> Makers:
        B, A, old_B, old_A = factors(run.device, modules, side, TASKS)
        trained = B.requires_grad_(), A.requires_grad_()
        one = [factor.detach()[:1].double() for factor in (B, A, old_B, old_A)]
        one[0].requires_grad_()
        (truth,) = torch.autograd.grad(reference.stability_loss(*one, ALPHA, "both").sum(), one[:1])
        found: list[Tensor] = []

        def trial(name: str, loss: Callable[..., Tensor]) -> Trial:
            def step() -> None:
                found[:] = torch.autograd.grad(loss(B, A, old_B, old_A, ALPHA, "both").sum(), trained)

            extra[name] = _peak(run, step)
            return Trial(step, lambda: error(found[0][:1], truth), TOLERANCE, "eager")

        return {
            "stability_loss": lambda: trial("stability_loss", stability_loss),
            "dense": lambda: trial("dense", reference.stability_loss),
        }

    targets = {"dense": [Target(5.0, "stability_loss", at_least=True)]}
    # at the least: D and P written, read for the loss and for its derivative, that written and read by two products
    dense = [Work(ours[0].flop, 9 * 4 * modules * side**2, "fp32")]
    for row in run.compare(labels, {"stability_loss": ours, "dense": dense}, make, "stability_loss", targets):
        if row["variant"] in extra:
            row["extra_mib"] = round(extra[row["variant"]] / 2**20, 1)
            row["allowed_mib"] = round(extra["dense"] / 2**20 / 100, 1) if row["variant"] != "dense" else ""
        yield row


def stability_labels(modules: int, side: int, rank: int, tasks: int) -> dict[str, object]:
    """Return the labels of the loss's rows."""
    return {"shape": f"{modules} x {side}x{side}, {tasks} earlier tasks", "dtype": "float32", "rank": rank}


def stability_work(modules: int, side: int, rank: int, tasks: int, unit: str) -> list[Work]:
    """Return both products of the loss and two of its gradient; the factors and their gradients move once."""
    flop = 2 * modules * side**2 * rank * (tasks + 3)
    return [Work(flop, 4 * modules * 2 * side * rank * (tasks + 2), unit)]


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
        _, _, B, A = factors(run.device, modules, side, tasks)
        B, A = B.unflatten(-1, (tasks, RANK)).movedim(-2, 1).contiguous(), A.unflatten(-2, (tasks, RANK))
        weights = torch.zeros(modules, side, side, device=run.device)
        truth = reference.merged(B[0].double(), A[0].double(), "magnitude")

        def all_of_them() -> None:
            for W, left, right in zip(weights, B, A):
                merge(W, left, right)

        return {
            "merge": lambda: Trial(all_of_them, lambda: error(weights[0], truth), TOLERANCE, "eager"),
            "read and write": lambda: Trial(lambda: weights.mul_(1.0), launch="eager"),
        }

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

        return {
            "retract": lambda: Trial(by_products, proof, TOLERANCE, "eager"),
            "an SVD a module": lambda: Trial(by_decompositions, proof, TOLERANCE, "eager"),
        }

    # ten steps of two products, and the first Gram matrix
    products = 21 * 2 * modules * side * COLUMNS**2
    work = {
        "retract": [Work(products, 2 * 4 * modules * side * COLUMNS, "fp32")],
        "an SVD a module": modules * svd_work(side, COLUMNS),
    }
    targets = {"an SVD a module": [Target(5.0, "retract", at_least=True)]}
    yield from run.compare(labels, work, make, "retract", targets)


def factors(device: torch.device, modules: int, side: int, tasks: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return B, A and those of the tasks side by side, of the size of real adapters."""
    shapes = [(side, RANK), (RANK, side), (side, tasks * RANK), (tasks * RANK, side)]
    B, A, old_B, old_A = (6e-3 * torch.randn(modules, *shape, device=device) for shape in shapes)
    return B, A, old_B, old_A


def _polar(M: Tensor) -> Tensor:
    U, _, Vh = torch.linalg.svd(M, full_matrices=False)
    return U @ Vh


def _peak(run: Run, step: Callable[[], object]) -> int:
    """Return the bytes that a step holds beyond what was there."""
    if not run.on_gpu:
        return 0
    step()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated() - before
