"""How a method meets an optimizer."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.optim import LBFGS, Optimizer
from tqdm import tqdm

from gsr_kernels.basis import load_bases, split_heads
from gsr_kernels.methods import GSR, Chain, Method
from gsr_kernels.optim.handle import Handle, Weight, attached, decompose, prepare
from gsr_kernels.optim.heads import resolve_heads
from gsr_kernels.optim.rank import Rank, resolve_rank
from gsr_kernels.optim.targets import find_targets


def attach(
    model: nn.Module,
    optimizer: Optimizer,
    method: Method | Sequence[Method] | None = None,
    *,
    rho: float | None = None,
    rank: Rank = None,
    targets: str | Iterable[str] = "all-linear",
    heads: Mapping[str, int | tuple[int, int]] | None = None,
    out_of_span: str | None = None,
    bases: str | os.PathLike[str] | None = None,
    nonfinite: str = "skip",
    record_every: int = 0,
) -> Handle:
    """Puts a method between a model's gradients and any torch optimizer, from the next ``optimizer.step()`` on.

    Args:
        model: its weights are decomposed now; call ``handle.refresh()`` when the next task begins.
        optimizer: holds the model's parameters; closures are served. A wrapper with the optimizer inside (Accelerate)
            is looked through.
        method: what to do, or several in the order of their use; or give ``rho``, short for ``GSR(rho=rho)``.
        rank: directions kept of each weight. None: all; an int, clamped to each weight's own rank; a float in (0, 1):
            that share of it; or ``{regex: either}``.
        targets: "all-linear", a regular expression or a list of name endings; see ``find_targets``.
        heads: ``{regex: h}`` takes the rows of a weight in h heads, ``{regex: (h, 1)}`` its columns, each with a basis
            of its own; whole by default, as in the paper.
        out_of_span: "drop" or "keep" what the bases do not span; None: "drop" where rank is None (the paper), else
            "keep".
        bases: a file that ``handle.save_bases`` wrote: what matches its weight is loaded, the rest decomposed.
        nonfinite: "skip" leaves a matrix whose gradient holds NaN or Inf as it came and counts it, without waiting for
            the device; "error" raises FloatingPointError before any weight is changed.
        record_every: measure every n-th step for ``handle.metrics()``; 0: never.

    Returns:
        The handle: refresh, metrics, save_bases, doctor, remove.

    Raises:
        TypeError, ValueError: what cannot be served, by the name of the argument; the optimizer is then as it was.
    """
    method = _resolve_method(method, rho, rank, out_of_span)
    optimizer = _innermost(optimizer)
    if nonfinite not in ("skip", "error"):
        raise ValueError(f"nonfinite must be 'skip' or 'error', got {nonfinite!r}")
    if record_every < 0:
        raise ValueError(f"record_every must be 0 or the number of steps between records, got {record_every}")

    places = {
        parameter: (group, index)
        for group, settings in enumerate(optimizer.param_groups)
        for index, parameter in enumerate(settings["params"])
    }
    if places.keys().isdisjoint(model.parameters()):
        raise ValueError(
            "optimizer holds none of the model's parameters: build it from model.parameters(), "
            "after the model was moved, wrapped or loaded"
        )
    found = find_targets(model, targets, set(places))
    matched = {target.name: target for target in found if target.reason is None}
    parameters = {name: target.parameter for name, target in matched.items()}
    split = resolve_heads(heads, list(matched.values()))
    matrices = {name: split_heads(parameter, split[name])[0] for name, parameter in parameters.items()}
    ranks = resolve_rank(rank, {name: (matrix.shape[-2], matrix.shape[-1]) for name, matrix in matrices.items()})

    stored = None if bases is None else load_bases(bases, matched)
    computed = decompose(method, parameters, ranks, split, stored)
    states = prepare(method, parameters, computed)
    weights = []
    for name, parameter in parameters.items():
        skipped = torch.zeros((), dtype=torch.int64, device=parameter.device)
        weights.append(Weight(name, places[parameter], ranks[name], split[name], computed[name], states[name], skipped))

    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    coverage = sum(parameter.numel() for parameter in parameters.values()) / trainable
    handle = Handle(optimizer, method, weights, found, coverage, nonfinite, record_every)
    tqdm.write(handle.summary(), file=sys.stderr)
    if coverage < 0.5:
        warnings.warn(
            f"gsr_kernels: only {coverage:.1%} of the trainable parameters are under the method; print(handle) says "
            "what was skipped and why",
            stacklevel=2,
        )
    return handle


def _resolve_method(
    method: Method | Sequence[Method] | None, rho: float | None, rank: Rank, out_of_span: str | None
) -> Method:
    if (method is None) == (rho is None):
        raise ValueError("give exactly one of method and rho; rho=0.5 is short for method=GSR(rho=0.5)")
    if rho is not None:
        method = GSR(rho=rho)
    methods: list[Any] = list(method) if isinstance(method, Sequence) else [method]
    if not methods or not all(isinstance(one, Method) for one in methods):
        raise TypeError(f"method must be one of gsr_kernels.methods or several, got {method!r}")
    spanning = [place for place, one in enumerate(methods) if hasattr(one, "out_of_span")]
    if out_of_span is not None and not spanning:
        raise ValueError(f"out_of_span is not a setting of {', '.join(type(one).__name__ for one in methods)}")
    for place in spanning:
        chosen = out_of_span or methods[place].out_of_span or ("drop" if rank is None else "keep")
        methods[place] = replace(methods[place], out_of_span=chosen)
    return methods[0] if len(methods) == 1 else Chain(tuple(methods))


def _innermost(optimizer: Optimizer) -> Optimizer:
    inner = getattr(optimizer, "optimizer", None)
    optimizer = inner if isinstance(inner, Optimizer) else optimizer
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if isinstance(optimizer, LBFGS):
        raise TypeError("optimizer: LBFGS evaluates gradients inside its step, out of a method's reach; use AdamW")
    if optimizer in attached:
        raise ValueError("optimizer has a handle already: handle.refresh() begins a new task, handle.remove() ends it")
    return optimizer
