"""Base of the methods that act on a model as a whole: EWC, and those on adapters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from tqdm import tqdm

from gsr_kernels.io.bases_file import aligned
from gsr_kernels.methods.base import part, wide
from gsr_kernels.methods.contract import check_hooks

# the loss of a model on a batch
Loss = Callable[[Any, Any], Tensor]


class ModelMethod(ABC):
    """Settings of a method, and what it remembers of finished tasks; ``attach`` binds it to a model.

    A ``Method`` acts on one weight at a time, in its singular basis; these need no basis.
    """

    @abstractmethod
    def bind(self, model: nn.Module) -> BoundMethod:
        """Return the method on one model. Raises TypeError and ValueError for a model that is not supported."""

    def start(self, model: nn.Module) -> None:  # noqa: B027
        """Take what the method needs of the model from before the task, where a checkpoint is loaded after it."""

    # attributes with what the method remembers of finished tasks, tensors by name
    remembers: ClassVar[tuple[str, ...]] = ()

    def state_dict(self) -> dict[str, Tensor]:
        """Return what the method remembers of finished tasks; empty for most."""
        kept = {kind: getattr(self, kind) for kind in self.remembers}
        return {f"{kind}.{name}": one.contiguous() for kind, each in kept.items() for name, one in each.items()}

    def load_state_dict(self, saved: Mapping[str, Tensor]) -> None:
        """Take back what ``state_dict`` returned; ValueError where the method remembers nothing."""
        if saved and not self.remembers:
            raise ValueError(f"{type(self).__name__} remembers no task, the state holds {next(iter(saved))}")
        own = {key: aligned(one) for key, one in saved.items()}
        for kind in self.remembers:
            setattr(self, kind, part(own, kind))


class BoundMethod:
    """A method on one model, driven by its handle."""

    def __init_subclass__(cls) -> None:
        """Raise TypeError for a misspelt hook."""
        super().__init_subclass__()
        check_hooks(cls, BoundMethod)

    # whether act() changes gradients before each step
    acts: ClassVar[bool] = True
    # whether the optimizer may lack some of the parameters, which then have no gradient in its step
    partly: ClassVar[bool] = False
    # a short name for messages
    name: str
    # those whose gradients it changes
    parameters: list[Tensor]

    def prepare(self, optimizer: Optimizer) -> None:
        """Ready an optimizer. Raises ValueError where it lacks one of the parameters, or ascends."""
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        missing = sum(id(parameter) not in held for parameter in self.parameters)
        if missing and not self.partly:
            raise ValueError(
                f"optimizer lacks {missing} of the adapter's {len(self.parameters)} factors: build it after the "
                "adapter was added"
            )
        if any(group.get("maximize") for group in optimizer.param_groups):
            raise ValueError(f"{self.name} supports descent: negate the loss instead of maximize=True")

    def watch(self) -> list[RemovableHandle]:
        """Listen to the model where the gradients do not say enough; return the hooks."""
        return []

    def act(self, optimizer: Optimizer) -> None:
        """Change the gradients of a step."""

    def start_task(self, optimizer: Optimizer, batches: Iterable[Any], loss: Loss) -> None:
        """Begin a task, where the method needs some of its batches for that."""

    def finish_task(self, batches: Iterable[Any] | None, loss: Loss | None) -> None:
        """Remember the task that was learned, where the method does."""

    def scalars(self) -> dict[str, float]:
        """Return a few numbers for a logger, by name; waits for the device."""
        return {}


def mean_over_batches(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    batches: Iterable[Any],
    loss: Loss,
    of: Callable[[Tensor], Tensor] = torch.positive,
) -> dict[str, Tensor]:
    """Return the mean over batches of ``of(gradient)`` of each parameter, in float32 or better.

    In the processes of a default group it is the mean over the batches of all, some of which may have none.

    Raises ValueError where batches is empty or a gradient is not finite, on every rank, and where a parameter has no
    gradient since its layer runs without them.
    """
    totals = {name: torch.zeros_like(wide(one), requires_grad=False) for name, one in parameters.items()}
    silent: set[int] = set()

    def notice(module: nn.Module, args: Any) -> None:
        if not torch.is_grad_enabled():
            silent.update(map(id, module.parameters(recurse=False)))

    count = 0
    hook = nn.modules.module.register_module_forward_pre_hook(notice)
    try:
        for batch in tqdm(batches, "gradients", unit="batch", leave=False, disable=None):
            value = loss(model, batch)
            reached = list(parameters.values()) if value.requires_grad else []
            found = dict(zip(parameters, torch.autograd.grad(value, reached, allow_unused=True) if reached else []))
            for name, parameter in parameters.items():
                # not held beside the next batch's
                gradient = found.pop(name, None)
                if gradient is not None:
                    totals[name] += of(wide(gradient))
                elif id(parameter) in silent or not reached:
                    raise ValueError(
                        f"{name} gets no gradient: its layer runs under torch.no_grad(), as activation checkpointing "
                        "with use_reentrant=True does; pass use_reentrant=False"
                    )
            # nor its graph, of which a part is never passed back
            del value
            count += 1
    finally:
        hook.remove()
    if dist.is_available() and dist.is_initialized():
        counted = torch.tensor(count, device=next(iter(totals.values())).device)
        for total in (counted, *totals.values()):
            dist.all_reduce(total)
        count = int(counted)
    if not count:
        raise ValueError("batches is empty: give some of the task")
    for name, total in totals.items():
        if not total.isfinite().all():
            raise ValueError(f"the gradient of {name} holds NaN or Inf: the task cannot be used")
    return {name: total / count for name, total in totals.items()}
