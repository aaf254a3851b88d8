"""AdamW with GSR inside its step."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.adamw import adamw

from gsr_kernels.basis import Precision
from gsr_kernels.checks import OutOfSpan, check_betas, check_kind
from gsr_kernels.distributed.layout import local
from gsr_kernels.methods import Method
from gsr_kernels.optim.adamw import move, plain, settings_of
from gsr_kernels.optim.attach import attach
from gsr_kernels.optim.fused_step import FusedStep
from gsr_kernels.optim.groups import named_groups
from gsr_kernels.optim.handle import Handle
from gsr_kernels.optim.step import OwnStep
from gsr_kernels.options import Rank, Rho
from gsr_kernels.weight import Weight

AMSGRAD = "amsgrad: GSRAdamW keeps no maximum of v; use torch.optim.AdamW(amsgrad=True) and attach()"

MOMENTS = ("exp_avg", "exp_avg_sq")


class GSRAdamW(OwnStep, AdamW):
    """``attach()`` and ``torch.optim.AdamW(fused=True)`` as one optimizer (Loshchilov and Hutter 2019).

    On a GPU the kernels of the step move weight and moments where the rescaled gradient arises, and ``parameter.grad``
    stays as backward() left it. What they do not support, and everything on a CPU, is rescaled in place and moved by
    torch. A matrix whose gradient holds NaN or Inf is skipped whole: weight, moments and, where no matrix of its
    parameter moves, the step stay as they were, and ``handle.metrics()`` counts it.

    Args:
        params: a model, its ``named_parameters()``, or groups of them,
            ``[{"params": [(name, parameter), ..], "lr": ..}, ..]``.
        lr, betas, eps, weight_decay, maximize, capturable: torch.optim.AdamW's; a tensor lr is read on the device.
        method, rho, rank, targets, out_of_span, bases, randomized, precision, shard_bases: attach()'s.
        state_dtype: of the moments of 16-bit parameters; None: the parameter's own.
        master_weights: keep a float32 copy of every 16-bit parameter, which AdamW moves, with moments in float32.
        amsgrad: not supported.

    Raises TypeError, ValueError and FileNotFoundError as torch.optim.AdamW and attach(), for parameters without names,
    and for amsgrad.
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        method: Method | Sequence[Method] | None = None,
        rho: Rho | None = None,
        rank: Rank = None,
        targets: str | Iterable[str] = "all-linear",
        out_of_span: OutOfSpan | None = None,
        bases: str | os.PathLike[str] | None = None,
        randomized: bool = False,
        precision: Precision | None = None,
        shard_bases: bool = False,
        state_dtype: torch.dtype | None = None,
        master_weights: bool = False,
        maximize: bool = False,
        capturable: bool = False,
        amsgrad: bool = False,
    ) -> None:
        flags = {"master_weights": master_weights, "maximize": maximize, "capturable": capturable}
        check_kind(bool, "True or False", **flags, amsgrad=amsgrad)
        check_kind(Real | Tensor, "a number", lr=lr, eps=eps, weight_decay=weight_decay)
        betas = check_betas(betas)
        if amsgrad:
            raise ValueError(AMSGRAD)
        if state_dtype not in (None, torch.float32, torch.bfloat16) or (master_weights and state_dtype is not None):
            raise ValueError(
                "state_dtype must be None, torch.float32 or torch.bfloat16, and None with master_weights, which keeps "
                f"float32 moments: got {state_dtype}"
            )
        groups, model = named_groups(params)
        self._state_dtype, self._master = state_dtype, master_weights
        self._start()
        super().__init__(groups, lr, betas, eps, weight_decay, maximize=maximize, capturable=capturable, fused=True)
        settings: dict[str, Any] = {"targets": targets, "out_of_span": out_of_span, "bases": bases}
        settings |= {"randomized": randomized, "precision": precision, "shard_bases": shard_bases}
        attach(model, self, method, rho=rho, rank=rank, **settings)
        self._built = True

    @property
    def handle(self) -> Handle:
        """Return attach()'s handle. Raises RuntimeError after ``handle.remove()``, and in a copy made without it."""
        found = Handle.of(self)
        if found is None:
            raise RuntimeError("this GSRAdamW has no handle: it was removed, or the optimizer was copied without it")
        return found

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group while the optimizer is built; later, since it would be under no method, raise ValueError."""
        if self._built:
            raise ValueError("GSRAdamW takes its groups when it is built: build a new one with all of them")
        _check(param_group)
        super().add_param_group({**param_group, "fused": True, "foreach": None})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, also one of torch.optim.AdamW; moments and masters keep the dtypes of this optimizer.

        Raises ValueError, with nothing changed, for amsgrad and for the state of another optimizer.
        """
        final: dict[str, Any] = {}

        # after all other hooks, which may give another state
        def look(optimizer: Optimizer, given: dict[str, Any]) -> None:
            for group in given["param_groups"]:
                _check(group)
            if any(saved and not {"step", *MOMENTS} <= saved.keys() for saved in given["state"].values()):
                raise ValueError("state_dict is not that of an AdamW: it lacks step, exp_avg or exp_avg_sq")
            final.update(given)

        hook = self.register_load_state_dict_pre_hook(look)
        own = [group["param_names"] for group in self.param_groups]
        try:
            super().load_state_dict(state_dict)
        finally:
            hook.remove()
        indices = [i for group in final["param_groups"] for i in group["params"]]
        theirs = [name for group in final["param_groups"] for name in group.get("param_names", ())]
        if set(theirs) == set(chain(*own)):
            # the same parameters, perhaps in another order
            by_name = dict(zip(theirs, indices))
            indices = [by_name[name] for name in chain(*own)]
        self.state.clear()
        for group, names in zip(self.param_groups, own):
            group["param_names"] = names
        for p, i in zip((p for group in self.param_groups for p in group["params"]), indices):
            if saved := final["state"].get(i):
                self.state[p] = self._state(p, saved)

    @torch._disable_dynamo
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; see ``torch.optim.Optimizer.step``.

        Raises RuntimeError, before anything moves, for sparse gradients, capture without ``capturable``, bare copies.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._copied and self.method_step is None:
            raise RuntimeError(
                "this copy of GSRAdamW knows no bases: deepcopy the model and optimizer.handle together, or attach()"
            )
        self._check_gradients()
        scaler = {key: getattr(self, key, None) for key in ("grad_scale", "found_inf")}
        method, live = self.method_step, None if self.method_step is None else self.method_step.begin()
        fused: set[int] = set()
        rewritten: dict[int, Weight] = {}
        if method is not None and live is not None:
            states = [self._state_of(weight.parameter) for weight, _ in live]
            if not self._masters_agree:
                self._agree()
            if not method.whole_gradients:
                fused = self._fused_step.plan(live, self.param_groups, states)
            live = [one for one in live if id(one[0].parameter) not in fused] if fused else live
            if live or not fused:
                method.rewrite(live)
            rewritten = {id(weight.parameter): weight for weight, _ in live}
        if fused:
            self._fused_step.run(self.param_groups, **scaler)
        for group in self.param_groups:
            rest = [p for p in group["params"] if p.grad is not None and id(p) not in fused]
            self._update(rest, group, rewritten, scaler)
        if method is not None:
            if method.rehearsed:
                # else the first true step would be corrected for bias as a second one
                for state in self.state.values():
                    state["step"].zero_()
            method.end()
        return loss

    def refreshed(self) -> None:
        """See OwnStep."""
        self._fused_step = FusedStep()
        self._masters_agree = False

    def reset_moments(self) -> None:
        """See OwnStep. Masters stay: they are values of the parameters."""
        self._fused_step = FusedStep()
        masters = {p: {"master": state["master"]} for p, state in self.state.items() if "master" in state}
        self.state.clear()
        self.state.update(masters)

    def _check_gradients(self) -> None:
        capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
        for group in self.param_groups:
            _check(group)
            if capturing and not group["capturable"]:
                raise RuntimeError("capturable: give GSRAdamW capturable=True to capture its step in a CUDA graph")
            if any(p.grad is not None and p.grad.layout != torch.strided for p in group["params"]):
                raise RuntimeError("GSRAdamW takes no sparse gradients: build the layer with sparse=False")

    def _update(
        self, params: list[Tensor], group: dict[str, Any], rewritten: Mapping[int, Weight], scaler: dict[str, Any]
    ) -> None:
        """AdamW by torch: at once what its fused step takes as it is, the rest one by one."""
        rows = []
        for p in params:
            state, weight = self._state_of(p), rewritten.get(id(p))
            assert p.grad is not None
            row = (p, p.grad, state["exp_avg"], state["exp_avg_sq"])
            if weight is None and "master" not in state and plain(row):
                rows.append((*row, state["step"]))
                continue
            matrices = None if weight is None else (weight.basis.split, weight.finite)
            shards = local(row[0]), local(row[1]), local(row[2]), local(row[3])
            master = local(state["master"]) if "master" in state else None
            move(shards, state["step"], group, master, matrices, **scaler)
        if rows:
            W, G, m, v, step = map(list, zip(*rows))
            adamw(W, G, m, v, [], step, **settings_of(group), **scaler)

    def _state_of(self, p: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[p]
        # a master may have been left alone
        if "step" not in state:
            state.update(self._state(p, state))
        return state

    def _state(self, p: Tensor, saved: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return what AdamW keeps of a parameter: new, or a copy of what was saved."""
        narrow = p.itemsize < 4
        dtype = (torch.float32 if self._master else self._state_dtype or p.dtype) if narrow else p.dtype
        step = torch.as_tensor(saved.get("step", 0.0), dtype=torch.float32).to(p.device, copy=True)
        state = {"step": step}
        for key in MOMENTS:
            state[key] = torch.zeros_like(p, dtype=dtype, memory_format=torch.preserve_format)
            if key in saved:
                state[key].copy_(saved[key])
        if self._master and narrow:
            state["master"] = p.detach().float()
            if "master" in saved:
                state["master"].copy_(saved["master"])
            self._masters_agree = False
        return state

    def _agree(self) -> None:
        """Take for new what a master no longer rounds to: weights that were loaded, merged or reset since."""
        for p, state in self.state.items():
            if "master" in state:
                master, held = state["master"], p.detach()
                master.copy_(torch.where(master.to(p.dtype) == held, master, held.float()))
        self._masters_agree = True

    def __getstate__(self) -> dict[str, Any]:
        settings = {"_state_dtype": self._state_dtype, "_master": self._master, "_built": True}
        return {**super().__getstate__(), **settings, "_copied": self.method_step is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._start()
        for group in self.param_groups:
            # a checkpoint of another AdamW may have been made without
            group.update(fused=True, foreach=None)

    def _start(self) -> None:
        self._fused_step = FusedStep()
        self._masters_agree = True

    # whether it is complete; and whether it is a copy, of which the handle may not be
    _built = False
    _copied = False


def _check(group: Mapping[str, Any]) -> None:
    if group.get("amsgrad"):
        raise ValueError(AMSGRAD)
    if group.get("differentiable"):
        raise ValueError("differentiable: a fused step has no gradient; use torch.optim.AdamW(differentiable=True)")
