"""Checks of what a method, one's own perhaps, defines and gives."""

from __future__ import annotations

import inspect
from collections.abc import MutableMapping
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

# the weights whose first gradient was looked at, by the address of their values, of each method
_seen: MutableMapping[Any, set[int]] = WeakIdKeyDictionary()


def check_hooks(kind: type, base: type) -> None:
    """Raise TypeError for a function of a class that is all but named like a hook of its base, and is never called."""
    hooks = [name for name, value in vars(base).items() if inspect.isfunction(value) and not name.startswith("_")]
    for name, value in vars(kind).items():
        if not inspect.isfunction(value) or name.startswith("_") or hasattr(base, name):
            continue
        if close := get_close_matches(name, hooks, 1, 0.8):
            raise TypeError(
                f"{kind.__name__}.{name} is never called: is it {close[0]}()? The hooks are {', '.join(hooks)}"
            )


def check_state(method: object, state: object) -> None:
    """Raise ValueError for what is no state of a weight."""
    if not isinstance(state, dict) or not all(isinstance(one, Tensor) for one in state.values()):
        raise ValueError(f"{type(method).__name__}.prepare() must return a dict of tensors, got {_told(state)}")


def check_nothing(method: object, found: object) -> None:
    """Raise ValueError for a constrain() that returns a weight, where it should have changed it."""
    if found is not None:
        raise ValueError(f"{type(method).__name__}.constrain() must change W in place, and returned {_told(found)}")


def check_gradient(method: object, found: object, G: Tensor, W: Tensor, finite: Tensor) -> None:
    """Raise ValueError for no gradient of G's shape, and where a weight's first one is not finite."""
    if not isinstance(found, Tensor) or not found.is_floating_point() or found.shape != G.shape:
        raise ValueError(
            f"{type(method).__name__}.gradient() must return a float tensor {tuple(G.shape)}, as G, got {_told(found)}"
        )
    seen = _seen.setdefault(method, set())
    # once a weight: it waits for the device
    if W.data_ptr() not in seen:
        seen.add(W.data_ptr())
        if (finite & ~found.isfinite().all(-1).all(-1)).any():
            raise ValueError(
                f"{type(method).__name__}.gradient() made NaN or Inf of a finite gradient {tuple(G.shape)} at the "
                "first step: look for a division by zero"
            )


def _told(value: object) -> str:
    return f"a {value.dtype} {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)[:80]
