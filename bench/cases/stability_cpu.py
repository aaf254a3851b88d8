"""PS-LoRA's loss and gradients on a CPU, from the factors, beside the dense form in autograd."""

from collections.abc import Iterator

import torch
from tqdm import tqdm

from bench.cases.adapters_gpu import ALPHA, RANK, factors, stability_labels, stability_work
from bench.run import Run
from bench.timing import compared, interleaved, peak_extra_bytes
from gsr_kernels.adapters.stability import stability_loss
from python_tests.adapters import reference

# modules, side, earlier tasks: those of LLaMA-2-7B, fewer of them
CASES = [(1, 4096, 14), (4, 1024, 4)]


def rows(run: Run) -> Iterator[dict]:
    if run.dry:
        for modules, side, tasks in CASES:
            of = modules, side, RANK, tasks
            work = {"stability_loss": stability_work(*of, "fp32")}
            yield from run.compare(stability_labels(*of), work, dict, "stability_loss")
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    for case in tqdm(CASES, "stability_loss on a CPU"):
        yield from _rows(run, *case)
    torch.set_num_threads(before)


def _rows(run: Run, modules: int, side: int, tasks: int) -> Iterator[dict]:
    B, A, old_B, old_A = factors(run.device, modules, side, tasks)
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
    labels = {**stability_labels(modules, side, RANK, tasks), "threads": 1}
    for name, found in compared(interleaved(steps, seconds=0, least=7), "stability_loss").items():
        yield {"variant": name, **labels, **found, "extra_mib": round(peak_extra_bytes(steps[name]) / 2**20, 3)}


def _check(*found: tuple[torch.Tensor, ...]) -> None:
    """Refuse to time what is wrong."""
    for mine, *others in zip(*found):
        for other in others:
            if not torch.linalg.norm(mine - other) < 1e-5 * torch.linalg.norm(other):
                raise RuntimeError("stability_loss and the dense form differ")
