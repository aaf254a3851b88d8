"""PS-LoRA's loss and gradients on a CPU, from the factors, beside the dense form in autograd."""

from collections.abc import Iterator

import torch
from tqdm import tqdm

from bench.run import Run
from bench.timing import interleaved, peak_extra_bytes, percentiles
from gsr_kernels.adapters.stability import stability_loss
from gsr_kernels.cli.floors import Work
from python_tests.adapters import reference

# modules, side, rank, earlier tasks: those of LLaMA-2-7B, fewer of them
CASES = [(1, 4096, 8, 14), (4, 1024, 8, 4)]
ALPHA = 1e4


def rows(run: Run) -> Iterator[dict]:
    if run.dry:
        for modules, side, rank, tasks in CASES:
            described = {"shape": _shape(modules, side, tasks), "dtype": "float32", "rank": rank}
            # both products of the loss and two of its gradient; the factors and their gradients once
            flop = 2 * modules * side**2 * rank * (tasks + 3)
            work = [Work(flop, 4 * modules * 2 * side * rank * (tasks + 2), "fp32")]
            yield from run.compare(described, {"stability_loss": work}, dict, "stability_loss")
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    for case in tqdm(CASES, "stability_loss on a CPU"):
        yield from _rows(*case)
    torch.set_num_threads(before)


def _rows(modules: int, side: int, rank: int, tasks: int) -> Iterator[dict]:
    B, old_B = 6e-3 * torch.randn(modules, side, rank), 6e-3 * torch.randn(modules, side, rank * tasks)
    A, old_A = 6e-3 * torch.randn(modules, rank, side), 6e-3 * torch.randn(modules, rank * tasks, side)
    trained = B.requires_grad_(), A.requires_grad_()
    P = old_B @ old_A
    variants = {
        "stability_loss": lambda: stability_loss(B, A, old_B, old_A, ALPHA),
        "dense": lambda: reference.stability_loss(B, A, old_B, old_A, ALPHA, "both"),
        # P as a constant of the task, which takes the memory of the weights once more
        "dense, P kept": lambda: (D := B @ A).square().mul(1 - torch.tanh(ALPHA * D) * torch.tanh(ALPHA * P)).sum(),
    }
    steps = {name: lambda loss=loss: torch.autograd.grad(loss().sum(), trained) for name, loss in variants.items()}
    _check(*(step() for step in steps.values()))
    times = {name: percentiles(values) for name, values in interleaved(steps, seconds=0, least=7).items()}
    for name, step in steps.items():
        yield {
            "variant": name,
            "shape": _shape(modules, side, tasks),
            "dtype": "float32",
            "rank": rank,
            "threads": 1,
            **times[name],
            "ratio": round(times[name]["p50_ms"] / times["stability_loss"]["p50_ms"], 3),
            "ratio_to": "stability_loss",
            "extra_mib": round(peak_extra_bytes(step) / 2**20, 3),
        }


def _shape(modules: int, side: int, tasks: int) -> str:
    return f"{modules} x {side}x{side}, {tasks} earlier tasks"


def _check(*found: tuple[torch.Tensor, ...]) -> None:
    """Refuse to time what is wrong."""
    for mine, *others in zip(*found):
        for other in others:
            if not torch.linalg.norm(mine - other) < 1e-5 * torch.linalg.norm(other):
                raise RuntimeError("stability_loss and the dense form differ")
