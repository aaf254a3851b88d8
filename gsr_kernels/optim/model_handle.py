"""Live connection between methods on a whole model and an optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from gsr_kernels.methods.base import part
from gsr_kernels.methods.on_model import BoundMethod, Loss, ModelMethod
from gsr_kernels.optim.step import hook_before_steps, is_rehearsal
from gsr_kernels.optim.supported import Unpickled, innermost


class ModelHandle(Unpickled):
    """Methods on a model and an optimizer, in the order of their use; ``attach`` makes it.

    Each acts once a step, however many micro-batches there were, after unscaling and clipping, until ``remove()``.

    Raises TypeError and ValueError where a method does not support the model or the optimizer.
    """

    def __init__(self, model: object, optimizer: Optimizer, methods: Sequence[ModelMethod]) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        self.methods = list(methods)
        self._optimizer = innermost(optimizer)
        self._bound = [method.bind(model) for method in methods]
        for bound in self._bound:
            bound.prepare(self._optimizer)
        self._hooks: list[RemovableHandle] = []
        for bound in self._bound:
            if bound.acts:
                self._hooks.append(hook_before_steps(self._optimizer, partial(_act, bound, self._optimizer)))
            self._hooks += bound.watch()

    def start_task(self, batches: Iterable[Any], loss: Loss) -> None:
        """Begin a task where a method needs some of its batches, and ``loss(model, batch)`` (EBLoRA).

        Raises ValueError where the data is unusable; nothing has changed then.
        """
        for bound in self._bound:
            bound.start_task(self._optimizer, batches, loss)

    def finish_task(self, batches: Iterable[Any] | None = None, loss: Loss | None = None) -> None:
        """Remember the task that was learned, where a method does (EWC, which needs its data; LwFOwn; EBLoRA).

        Raises ValueError where the data is missing or unusable; nothing has changed then.
        """
        for bound in self._bound:
            bound.finish_task(batches, loss)

    def scalars(self) -> dict[str, float]:
        """Return what the methods measure, by name, for any logger."""
        return {name: value for bound in self._bound for name, value in bound.scalars().items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Return what EWC, LwFOwn and EBLoRA remember of finished tasks. The optimizer's state does not hold it."""
        return {
            f"{index}.{key}": tensor
            for index, method in enumerate(self.methods)
            for key, tensor in method.state_dict().items()
        }

    def load_state_dict(self, saved: Mapping[str, Tensor]) -> None:
        """Go on from ``state_dict()`` of the same methods."""
        for index, method in enumerate(self.methods):
            method.load_state_dict(part(saved, str(index)))
            # the optimizer may hold some of it
            self._bound[index].prepare(self._optimizer)

    def remove(self) -> None:
        """Take the methods off model and optimizer."""
        for hook in self._hooks:
            hook.remove()

    def __repr__(self) -> str:
        return f"ModelHandle({', '.join(map(repr, self.methods))})"


def model_methods(method: object) -> list[ModelMethod]:
    """Return the methods where they act on a model as a whole; an empty list where they act on single weights.

    Raises TypeError for both kinds at once.
    """
    several = list(method) if isinstance(method, Sequence) else [method]
    found = [one for one in several if isinstance(one, ModelMethod)]
    if found and len(found) < len(several):
        names = ", ".join(type(one).__name__ for one in several)
        raise TypeError(f"method: {names} act on single weights and on whole models: attach one kind, then the other")
    return found


def _act(bound: BoundMethod, optimizer: Optimizer) -> None:
    """Have a method act, outside of autograd and autocast, where a parameter has a gradient."""
    gradients = [parameter.grad for parameter in bound.parameters if parameter.grad is not None]
    if gradients and not is_rehearsal(optimizer, gradients):
        with torch.no_grad(), torch.autocast(gradients[0].device.type, enabled=False):
            bound.act(optimizer)
