"""Check the arguments that operators, methods and kernels share."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any, Literal, TypeGuard, get_args

import torch
from torch import Tensor

Backend = Literal["auto", "torch", "triton", "cublas", "tma", "cutlass", "cuda"]
OutOfSpan = Literal["drop", "keep"]


def check_number(name: str, value: object, low: float, high: float = math.inf, above: bool = False) -> float:
    """Return a finite number of [low, high] as a float, of (low, high] with ``above``; ValueError for anything else."""
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not (math.isfinite(number) and low <= number <= high) or (above and number == low):
        interval = f"{'(' if above else '['}{low:g}, {high:g}{']' if math.isfinite(high) else ')'}"
        raise ValueError(f"{name} must be a finite number in {interval}, got {value!r}")
    return number


def check_rho(rho: float) -> float:
    """Return ``rho`` as a float in [0, 1]; anything else is a ValueError."""
    return check_number("rho", rho, 0, 1)


def is_integer(number: object) -> TypeGuard[int]:
    """Return whether a number is an integer, numpy's included, and no bool."""
    return isinstance(number, Integral) and not isinstance(number, bool)


def check_count(name: str, value: object, low: int = 1) -> None:
    """Raise ValueError for what is no integer from ``low`` on."""
    if not is_integer(value) or value < low:
        raise ValueError(f"{name} must be an integer from {low} on, got {value!r}")


def check_kind(kind: Any, about: str, **given: object) -> None:
    """Raise TypeError, by their names, for arguments that are of none of the classes of ``kind``."""
    for name, value in given.items():
        if not isinstance(value, kind):
            raise TypeError(f"{name} must be {about}, got {value!r}")


def check_betas(betas: object) -> tuple[Any, Any]:
    """Return AdamW's two betas, numbers or tensors of one, of any sequence; ValueError, by their name, for others."""
    pair: tuple[Any, ...] = tuple(betas) if isinstance(betas, Iterable) and getattr(betas, "ndim", 1) == 1 else ()
    if len(pair) != 2 or not all(isinstance(one, Real | Tensor) and 0 <= float(one) < 1 for one in pair):
        raise ValueError(f"betas must be two numbers of [0, 1), got {betas!r}")
    return pair[0], pair[1]


def check_choice(name: str, value: object, kind: Any) -> None:
    """Raise ValueError where an argument is none of the texts of a ``Literal``."""
    if value not in get_args(kind):
        raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}, got {value!r}")


def check_pattern(name: str, pattern: Any) -> re.Pattern[str]:
    """Return a regular expression, compiled; ValueError for what is none."""
    try:
        return re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ValueError(f"{name}: {pattern!r} is no regular expression: {error}") from error


def check_out_of_span(out_of_span: str | None) -> None:
    """Raise ValueError for an ``out_of_span`` that is neither None nor one of ``OutOfSpan``."""
    if out_of_span is not None and out_of_span not in get_args(OutOfSpan):
        raise ValueError(f"out_of_span must be None, 'drop' or 'keep', got {out_of_span!r}")


def check_fit(**tensors: tuple[Tensor, Sequence[int]]) -> None:
    """Raise TypeError unless all are real, dense tensors, ValueError unless on one device and of the shapes given."""
    first = next(iter(tensors))
    for name, (tensor, shape) in tensors.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.layout != torch.strided:
            got = f"{tensor.dtype} {tensor.layout}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"{name} must be a real, dense floating-point tensor, got {got}")
        if tensor.shape != torch.Size(shape):
            raise ValueError(f"{name} must be {tuple(shape)} to fit the others, got {tuple(tensor.shape)}")
        if tensor.device != (device := tensors[first][0].device):
            raise ValueError(f"{name} is on {tensor.device}, {first} on {device}: move it with {name}.to({device})")
