"""Optimizers and models that no method can act on, refused with the reason and the way out."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import NoReturn

from torch import nn
from torch.optim import LBFGS, Optimizer

from gsr_kernels.distributed.flat import FlatModel

# their names, and what their attach() takes
ENGINES = {"deepspeed": ("DeepSpeed", "engine"), "megatron": ("Megatron-Core", "optimizer")}


def innermost(optimizer: object) -> Optimizer:
    """Return the torch optimizer inside any wrapper; TypeError for one whose gradients or steps no method can reach."""
    inner = getattr(optimizer, "optimizer", None)
    # torchft's wrapper is of the class Optimizer, but was never made one
    if inner is None and isinstance(optimizer, Optimizer) and not hasattr(optimizer, "defaults"):
        inner = getattr(optimizer, "optim", None)
    kinds = [kind for one in (optimizer, inner) for kind in type(one).__mro__]
    # its own Adam and its like are ordinary optimizers
    owners = [kind.__module__ + kind.__name__ for kind in kinds if not kind.__module__.startswith("deepspeed.ops")]
    for engine, (name, given) in ENGINES.items():
        if any(engine in one.lower() for one in owners):
            raise TypeError(
                f"optimizer: {name} steps flat partitions: use gsr_kernels.integrations.{engine}.attach({given}, ...)"
            )
    optimizer = inner if isinstance(inner, Optimizer) else optimizer
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if isinstance(optimizer, LBFGS):
        raise TypeError("optimizer: LBFGS evaluates gradients inside its step, out of a method's reach; use AdamW")
    # LOMO has no step of its own; transformers' stand-in for layer-wise GaLore holds an optimizer for each parameter
    if inspect.unwrap(type(optimizer).step) is inspect.unwrap(Optimizer.step) or hasattr(optimizer, "optimizer_dict"):
        raise TypeError(
            f"optimizer: {type(optimizer).__name__} moves each weight inside backward(), out of a method's reach: use "
            "one that steps after it (for layer-wise GaLore the form that is not layer-wise)"
        )
    # of its class torch says nothing where torch.distributed is missing
    if any(kind.__name__ == "PostLocalSGDOptimizer" for kind in kinds):
        raise TypeError(
            "optimizer: PostLocalSGDOptimizer lets the replicas drift apart between two averagings, and bases are "
            "the same on all of them: give its inner optimizer to DDP alone, and to attach()"
        )
    return optimizer


def check_model(model: object) -> None:
    """Raise TypeError for what is neither a module nor named parameters."""
    if isinstance(model, nn.Module | FlatModel):
        return
    if not isinstance(model, Mapping) or not all(isinstance(one, nn.Parameter) for one in model.values()):
        raise TypeError(f"model must be a torch.nn.Module, or named parameters in a dict, got {type(model).__name__}")


class Unpickled:
    """What lives on an optimizer by hooks, which neither pickle nor a copy takes along."""

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} lives on its optimizer and cannot be pickled: keep its state_dict(), and the bases "
            "by attach(bases=PATH); attach() and load_state_dict() bring it back"
        )
