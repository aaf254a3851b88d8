"""Attach a method to an optimizer."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from gsr_kernels.basis import Precision, split_shape, storage_dtype
from gsr_kernels.checks import OutOfSpan, check_choice, check_kind, check_out_of_span, is_integer
from gsr_kernels.distributed.agreement import (
    all_ranks_agree,
    common_layout,
    equal_on_all_ranks,
    is_rank0,
    on_rank0,
    run_on_all_ranks,
)
from gsr_kernels.distributed.flat import FlatModel, FlatShard, flat_model
from gsr_kernels.distributed.placements import advise, check_same_parameters, read_layouts
from gsr_kernels.distributed.schemes import choose_scheme
from gsr_kernels.io.bases_file import add_bases, check_folder, check_path, is_stored
from gsr_kernels.messages import some
from gsr_kernels.methods import GSR, Chain, Method
from gsr_kernels.methods.on_model import ModelMethod
from gsr_kernels.offload import BASIS_DEVICES
from gsr_kernels.optim.backends import settle_backends
from gsr_kernels.optim.bases import decompose, prepare, stored_bases, stored_basis
from gsr_kernels.optim.flat_step import FlatStep
from gsr_kernels.optim.handle import Handle, attached
from gsr_kernels.optim.model_handle import ModelHandle, model_methods
from gsr_kernels.optim.report import summary, warn, warn_pinned
from gsr_kernels.optim.step import MethodStep, OwnStep
from gsr_kernels.optim.supported import check_model, innermost
from gsr_kernels.optim.targets import find_targets, named_parameters
from gsr_kernels.options import Rank, Rho, resolve_heads, resolve_rank, resolve_rho
from gsr_kernels.weight import Weight, origin

Nonfinite = Literal["skip", "error"]


@overload
def attach(model: nn.Module, optimizer: Optimizer, method: ModelMethod | Sequence[ModelMethod]) -> ModelHandle: ...
@overload
def attach(
    model: nn.Module | Mapping[str, nn.Parameter] | FlatModel,
    optimizer: Optimizer,
    method: Method | Sequence[Method] | None = None,
    *,
    rho: Rho | None = None,
    rank: Rank = None,
    targets: str | Iterable[str] = "all-linear",
    heads: Mapping[str, int | tuple[int, int]] | None = None,
    out_of_span: OutOfSpan | None = None,
    bases: str | os.PathLike[str] | None = None,
    basis_device: Literal["cpu"] | None = None,
    nonfinite: Nonfinite = "skip",
    record_every: int = 0,
    randomized: bool = False,
    precision: Precision | None = None,
    shard_bases: bool = False,
) -> Handle: ...
def attach(
    model: nn.Module | Mapping[str, nn.Parameter] | FlatModel,
    optimizer: Optimizer,
    method: Method | ModelMethod | Sequence[Method] | Sequence[ModelMethod] | None = None,
    *,
    rho: Rho | None = None,
    rank: Rank = None,
    targets: str | Iterable[str] = "all-linear",
    heads: Mapping[str, int | tuple[int, int]] | None = None,
    out_of_span: OutOfSpan | None = None,
    bases: str | os.PathLike[str] | None = None,
    basis_device: Literal["cpu"] | None = None,
    nonfinite: Nonfinite = "skip",
    record_every: int = 0,
    randomized: bool = False,
    precision: Precision | None = None,
    shard_bases: bool = False,
) -> Handle | ModelHandle:
    """Put a method between a model's gradients and any torch optimizer, from the next ``optimizer.step()`` on.

    Under torch.distributed every rank must call, on GPUs also where ranks train models of their own: they agree on how
    steps are computed.

    Args:
        model: or a dict of named parameters. They are decomposed now, and by ``handle.refresh()`` when the next task
            begins.
        optimizer: holds the model's parameters; also inside Accelerate's wrapper.
        method: what to do, or several in the order of their use; or give ``rho``, short for ``GSR(rho=rho)``,
            a number or ``{regex: number}``. Methods on a whole model (EWC, LwFOwn, those on adapters) are given alone.
        rank: directions kept of each weight. None: all; an int, clamped to each weight's own rank; a float in (0, 1):
            that share of it; or ``{regex: either}``.
        targets: "all-linear", a regular expression or a list of name endings; see ``find_targets``.
        heads: ``{regex: h}`` takes the rows of a weight in h heads, ``{regex: (h, 1)}`` its columns, each with a basis
            of its own; whole by default, as in the paper.
        out_of_span: "drop" or "keep" what the bases do not span; None: "drop" where rank is None (the paper), else
            "keep".
        bases: a file, one a task, that keeps the bases. If it is not there it is written. Else what matches its weight
            is loaded and the rest decomposed: at the first step, for a checkpoint may still ask for what is stored.
        basis_device: "cpu" keeps the bases in host memory (pinned) and brings some at a time to the weights' device.
            None: they stay beside the weights.
        nonfinite: "skip" leaves a matrix whose gradient holds NaN or Inf as it came and counts it, without waiting for
            the device; "error" raises FloatingPointError before any weight is changed.
        record_every: measure every n-th step for ``handle.metrics()``; 0: never.
        randomized: find the bases of truncated ``rank`` by ``randomized_svd``: faster, and slightly less than the best.
        precision: of U and Vh, "fp32", "fp16" or "bf16", also at ``refresh()``. None: as ``bases`` or a checkpoint has
            them, and without these float32 on a CPU and float16 on a GPU.
        shard_bases: of a weight that is sharded over ranks, also shard the factors that each would hold whole, and
            gather them twice a step, one weight at a time: less memory, more traffic.

    Returns the handle, of methods on a whole model a ``ModelHandle``. Raises TypeError, ValueError or FileNotFoundError
    for what is not supported, by the name of the argument; the optimizer is then as it was.
    """
    settings = locals()
    if whole := model_methods(method):
        if isinstance(model, FlatModel):
            raise ValueError(
                "method: methods on a whole model need whole gradients, which no rank of an engine with flat shards "
                "has; use DDP"
            )
        given = [name for name, default in (attach.__kwdefaults__ or {}).items() if settings[name] != default]
        if given:
            raise ValueError(f"{given[0]} is not a setting of {', '.join(type(one).__name__ for one in whole)}")
        return ModelHandle(model, optimizer, whole)
    optimizer = innermost(optimizer)
    check_model(model)
    if id(optimizer) in attached:
        raise ValueError("optimizer has a handle already: handle.refresh() begins a new task, handle.remove() ends it")
    if basis_device not in BASIS_DEVICES:
        raise ValueError(f"basis_device must be None or 'cpu', got {basis_device!r}")
    check_choice("nonfinite", nonfinite, Nonfinite)
    check_out_of_span(out_of_span)
    check_kind(bool, "True or False", randomized=randomized, shard_bases=shard_bases)
    if not is_integer(record_every) or record_every < 0:
        raise ValueError(f"record_every must be 0 or the number of steps between records, got {record_every!r}")

    places = {
        parameter: (group, index)
        for group, settings in enumerate(optimizer.param_groups)
        for index, parameter in enumerate(settings["params"])
    }
    flat = flat_model(model, places.keys())
    shards: dict[Tensor, FlatShard] = {} if flat is None else {shard.whole: shard for shard in flat.shards}
    trained = {*places, *(whole for whole, shard in shards.items() if shard.trained)}
    parameters: list[Tensor] = [parameter for _, _, parameter in named_parameters(model if flat is None else flat)]
    if flat is not None and isinstance(optimizer, OwnStep):
        raise TypeError(f"optimizer: {type(optimizer).__name__} needs weights that are not flattened; use AdamW")
    check_same_parameters(model, set(places))
    if trained.isdisjoint(parameters):
        raise ValueError(
            "optimizer holds none of the model's parameters: build it from model.parameters(), "
            "after the model was moved, wrapped or loaded. Under DeepSpeed use "
            "gsr_kernels.integrations.deepspeed.attach(engine, ...)"
        )
    found = find_targets(model if flat is None else flat, targets, trained)
    matched = {target.name: target.parameter for target in found if target.reason is None}
    if any(parameter.is_meta for parameter in matched.values() if parameter not in shards):
        raise ValueError("model: its weights are on the meta device, without values: load them before attach()")
    methods = _resolve_methods(method, rho, rank, out_of_span, list(matched))
    narrow = [name for name, W in matched.items() if W.itemsize < 4 and methods[name].constrains]
    if narrow:
        raise ValueError(
            f"{type(methods[narrow[0]]).__name__} corrects weights after each step, by less than {some(narrow)} in "
            f"{matched[narrow[0]].dtype} can hold: train float32 weights under bfloat16 autocast"
        )
    constraining = [one for one in methods.values() if one.constrains]
    # as ScheduleFree and its like have
    if constraining and all(callable(getattr(optimizer, name, None)) for name in ("train", "eval")):
        raise ValueError(
            f"{type(constraining[0]).__name__} corrects weights after each step, and {type(optimizer).__name__} has "
            "other weights evaluated than those: use an optimizer without train() and eval()"
        )
    split = resolve_heads(heads, [target for target in found if target.reason is None])
    layouts = read_layouts(model, matched, shards)
    all_layouts = list(layouts.values())
    sides = {name: split_shape(W.shape, split[name])[0][-2:] for name, W in matched.items()}
    ranks = resolve_rank(rank, sides)

    if randomized and rank is None:
        raise ValueError("randomized needs a rank: a whole basis is decomposed exactly")
    own = [one for one in methods.values() if one.basis_kind]
    if randomized and own:
        raise ValueError(f"randomized: {own[0]!r} has bases of its own, which no sketch finds; leave it out")
    chosen = [one for one in methods.values() if one.own_decompose]
    if precision is not None and chosen:
        raise ValueError(f"precision: {chosen[0]!r} decomposes by itself, as precisely as it does; leave it out")
    storage_dtype(precision, torch.float32, torch.device("cpu"))
    weights = []
    for name, W in matched.items():
        asked, most, one = ranks[name], min(sides[name]), methods[name]
        k, clamped = None if asked is None else min(asked, most), asked if asked and asked > most else None
        scheme = choose_scheme(name, one, layouts[name], k or most, split[name], shard_bases)
        sketched = randomized and k is not None
        stepped = shards[W].buffer if W in shards else W
        # an engine puts its buffers into the optimizer when it steps them
        place, offloaded = places.get(stepped, (0, 0)), basis_device is not None
        weights.append(
            Weight(name, stepped, place, one, k, split[name], scheme, offloaded, sketched, precision, clamped)
        )
    cut = [weight for weight in weights if not weight.whole]
    if record_every and cut:
        raise ValueError(f"record_every measures whole gradients: {cut[0].name} is sharded over ranks; leave it at 0")
    if shard_bases and not cut:
        raise ValueError("shard_bases: no weight is sharded over ranks, whose bases they could share; leave it out")
    if shard_bases and not equal_on_all_ranks(
        [weight.name for weight in cut], [weight.scheme.layout for weight in cut]
    ):
        raise ValueError(
            "shard_bases: ranks that share a weight hold unlike sharded weights beside it. They would gather in "
            "different orders: place the weights on one mesh, or leave it out"
        )
    there, path = False, None if bases is None else check_path(bases)
    if path is not None:
        run_on_all_ranks(lambda: check_folder(path), all_layouts)
        if any(layout.mesh_dims() for layout in all_layouts):
            common_layout(all_layouts)
        there = all_ranks_agree(is_stored(path), all_layouts)
    absent, other, stale = _fill(weights, path, there)
    settle_backends(weights, isinstance(optimizer, OwnStep))
    # to a directory of shards nothing can be added
    adding = there and path is not None and bool(absent) and not other and Path(path).is_file()
    trainable = sum(parameter.numel() for parameter in dict.fromkeys(parameters) if parameter.requires_grad)
    coverage = sum(parameter.numel() for parameter in matched.values()) / trainable
    file = path if not other and (not absent or adding) else None
    kind = MethodStep if flat is None else FlatStep
    step = kind(optimizer, weights, found, nonfinite == "error", record_every, path, file, stale)
    handle = Handle(step, coverage)
    if path is not None and not there:
        handle.save_bases(path)
    if path is not None and absent:
        warn("added" if adding else "missing", [weight.name for weight in absent], file=path)
        if adding:
            on_rank0(lambda: add_bases(path, {w.name: w.basis for w in absent}), all_layouts)
    if is_rank0(all_layouts):
        tqdm.write(summary(weights, coverage), file=sys.stderr)
        advise(cut)
    confined = [w for w in weights if getattr(w.method, "out_of_span", None) == "drop" and w.basis.full_rank]
    warn_pinned({weight.name: weight.basis for weight in confined})
    if coverage < 0.5:
        warn("coverage", coverage=coverage)
    return handle


def _fill(weights: list[Weight], path: str | None, there: bool) -> tuple[list[Weight], list[Weight], list[Weight]]:
    """Give the weights their bases, of the file or new; return those that it lacks, has otherwise, or of old values."""
    file = stored_bases(path, weights) if path is not None and there else {}
    if there and not file:
        raise ValueError(f"bases: {path} holds none of the matched weights, as another model's; name another file")
    kept = [stored_basis(weight, file.get(weight.name)) for weight in weights]
    missing = [weight for weight, basis in zip(weights, kept) if basis is None]
    fresh = iter(decompose(missing))
    bases = [next(fresh) if basis is None else basis for basis in kept]
    for weight, basis, state in zip(weights, bases, prepare(weights, bases)):
        weight.keep(basis)
        if not weight.method.own_decompose:
            weight.precision = weight.precision or (basis.precision if weight not in missing else None)
        weight.state = state
        weight.skipped = torch.zeros((), dtype=torch.int64, device=weight.held.device)
    stale = [weight for weight in weights if weight not in missing and weight.basis.fingerprint != origin(weight)]
    absent = [weight for weight in missing if weight.name not in file] if there else []
    other = [weight for weight in missing if weight.name in file]
    return absent, other, stale


def _resolve_methods(
    method: Any, rho: Rho | None, rank: Rank, out_of_span: str | None, names: list[str]
) -> dict[str, Method]:
    """The method of each weight; weights under one method share the object."""
    if (method is None) == (rho is None):
        raise ValueError("give exactly one of method and rho; rho=0.5 is short for method=GSR(rho=0.5)")
    if rho is not None:
        of = resolve_rho(rho, names)
        shared = {value: _resolve_method([GSR(rho=value)], rank, out_of_span) for value in set(of.values())}
        return {name: shared[of[name]] for name in names}
    several: list[Any] = list(method) if isinstance(method, Sequence) else [method]
    if not several or not all(isinstance(one, Method) for one in several):
        raise TypeError(f"method must be one of gsr_kernels.methods or several, got {method!r}")
    return dict.fromkeys(names, _resolve_method(several, rank, out_of_span))


def _resolve_method(methods: list[Any], rank: Rank, out_of_span: str | None) -> Method:
    spanning = [place for place, one in enumerate(methods) if hasattr(one, "out_of_span")]
    if out_of_span is not None and not spanning:
        raise ValueError(f"out_of_span is not a setting of {', '.join(type(one).__name__ for one in methods)}")
    for place in spanning:
        chosen = out_of_span or methods[place].out_of_span or ("drop" if rank is None else "keep")
        methods[place] = replace(methods[place], out_of_span=chosen)
    return methods[0] if len(methods) == 1 else Chain(tuple(methods))
