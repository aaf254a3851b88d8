"""Optimizers and models that no method can act on, refused with the reason and the way out."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.optim import LBFGS, Optimizer


def innermost(optimizer: object) -> Optimizer:
    """The torch optimizer itself, inside Accelerate's or Lightning's wrapper.

    Raises TypeError for DeepSpeed's, LBFGS, and what is no optimizer.
    """
    inner = getattr(optimizer, "optimizer", None)
    for one in (optimizer, inner):
        if any("deepspeed" in (kind.__module__ + kind.__name__).lower() for kind in type(one).__mro__):
            raise TypeError(
                "optimizer: DeepSpeed steps inside its own engine on flat partitions, out of a method's reach. Use "
                "FSDP2 (fully_shard) or DDP instead"
            )
    optimizer = inner if isinstance(inner, Optimizer) else optimizer
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if isinstance(optimizer, LBFGS):
        raise TypeError("optimizer: LBFGS evaluates gradients inside its step, out of a method's reach; use AdamW")
    return optimizer


def check_model(model: nn.Module | Mapping[str, nn.Parameter]) -> None:
    """Raises TypeError for neither a module nor named parameters, and for a model that FSDP1 has flattened."""
    if isinstance(model, Mapping) and all(isinstance(one, nn.Parameter) for one in model.values()):
        return
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, or named parameters in a dict, got {type(model).__name__}")
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise TypeError(
            "model: FullyShardedDataParallel (FSDP1) flattens its weights, which then have no singular basis. Use "
            "torch.distributed.fsdp.fully_shard (FSDP2; in accelerate fsdp_version: 2)"
        )
