"""AdamW with GSR inside its step."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from gsr_kernels.methods import Method
from gsr_kernels.optim.adamw import move, plain
from gsr_kernels.optim.attach import attach
from gsr_kernels.optim.groups import named_groups
from gsr_kernels.optim.handle import Handle
from gsr_kernels.optim.in_kernels import InKernels
from gsr_kernels.optim.transform import Live
from gsr_kernels.options import Rank, Rho
from gsr_kernels.weight import Weight

AMSGRAD = "amsgrad: GSRAdamW keeps no maximum of v; use torch.optim.AdamW(amsgrad=True) and attach()"

MOMENTS = ("exp_avg", "exp_avg_sq")


class GSRAdamW(AdamW):
    """``attach()`` and ``torch.optim.AdamW(fused=True)`` as one optimizer (Loshchilov and Hutter 2019).

    On a GPU the kernels of the step move weight and moments where the rescaled gradient arises: it is never written,
    and ``parameter.grad`` stays as backward() left it. What they do not serve, and everything on a CPU, is rescaled in
    place and moved by torch. A matrix whose gradient holds NaN or Inf is skipped whole: weight, moments and, where no
    matrix of its parameter moves, the step stay as they were, ``handle.metrics()`` counts it, and nothing waits for the
    device.

    Args:
        model_or_named_parameters: a model, its ``named_parameters()``, or groups of them,
            ``[{"params": [(name, parameter), ..], "lr": ..}, ..]``. Of names alone, embeddings are told by what they
            are called.
        lr, betas, eps, weight_decay, maximize, capturable: torch.optim.AdamW's; a tensor lr is read on the device.
        method, rho, rank, targets, out_of_span, bases, randomized, shard_bases: attach()'s; ``handle`` is what it
            returns.
        state_dtype: of the moments of 16-bit parameters; None: the parameter's own.
        master_weights: keep a float32 copy of every 16-bit parameter, which AdamW moves, with moments in float32.
        amsgrad: not served.

    Raises:
        TypeError, ValueError, FileNotFoundError: as torch.optim.AdamW and attach(); parameters without names; amsgrad.
    """

    def __init__(
        self,
        model_or_named_parameters: nn.Module | Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        method: Method | Sequence[Method] | None = None,
        rho: Rho | None = None,
        rank: Rank = None,
        targets: str | Iterable[str] = "all-linear",
        out_of_span: str | None = None,
        bases: str | os.PathLike[str] | None = None,
        randomized: bool = False,
        shard_bases: bool = False,
        state_dtype: torch.dtype | None = None,
        master_weights: bool = False,
        maximize: bool = False,
        capturable: bool = False,
        amsgrad: bool = False,
    ) -> None:
        if amsgrad:
            raise ValueError(AMSGRAD)
        if state_dtype not in (None, torch.float32, torch.bfloat16) or (master_weights and state_dtype is not None):
            raise ValueError(
                "state_dtype must be None, torch.float32 or torch.bfloat16, and None with master_weights, which keeps "
                f"float32 moments: got {state_dtype}"
            )
        groups, model = named_groups(model_or_named_parameters)
        self._state_dtype, self._master = state_dtype, master_weights
        self._start()
        super().__init__(groups, lr, betas, eps, weight_decay, maximize=maximize, capturable=capturable, fused=True)
        settings: dict[str, Any] = {"targets": targets, "out_of_span": out_of_span, "bases": bases}
        settings |= {"randomized": randomized, "shard_bases": shard_bases}
        handle = attach(model, self, method, rho=rho, rank=rank, **settings)
        constraining = [one for one in handle.methods if one.constrains]
        if master_weights and constraining:
            handle.remove()
            raise ValueError(
                f"master_weights: {type(constraining[0]).__name__} corrects the weights, not their masters"
            )
        self._built = True

    @property
    def handle(self) -> Handle:
        """See ``attach``. Raises RuntimeError after ``handle.remove()``, and in a copy made without it."""
        found = Handle.of(self)
        if found is None:
            raise RuntimeError("this GSRAdamW has no handle: it was removed, or the optimizer was copied without it")
        return found

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Only while it is built: what came later would be under no method. Raises ValueError after that."""
        if self._built:
            raise ValueError("GSRAdamW takes its groups when it is built: build a new one with all of them")
        _check(param_group)
        super().add_param_group({**param_group, "fused": True, "foreach": None})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Also of torch.optim.AdamW. Moments and masters keep the dtypes of this optimizer, not of the weights.

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
        try:
            super().load_state_dict(state_dict)
        finally:
            hook.remove()
        ours = [p for group in self.param_groups for p in group["params"]]
        theirs = [i for group in final["param_groups"] for i in group["params"]]
        for p, saved in zip(ours, (final["state"].get(i, {}) for i in theirs)):
            if saved:
                self.state[p] = self._state(p, saved)

    def within(self, live: Live, serve: bool) -> set[Tensor]:
        """Those of ``(weight, p, G)`` that the step will move by kernels, none unless ``serve``; the handle calls it.

        Raises RuntimeError for what would break the step off in the middle.
        """
        capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
        for group in self.param_groups:
            _check(group)
            if capturing and not group["capturable"]:
                raise RuntimeError("capturable: give GSRAdamW capturable=True to capture its step in a CUDA graph")
            if any(p.grad is not None and p.grad.layout != torch.strided for p in group["params"]):
                raise RuntimeError("GSRAdamW takes no sparse gradients: build the layer with sparse=False")
        states = [self._state_of(p) for _, p, _ in live]
        if not self._masters_agree:
            self._agree()
        taken = self._in_kernels.take(live, self.param_groups, states) if serve else set()
        self._left.clear()
        self._left.update((p, weight) for weight, p, _ in live if p not in taken)
        return taken

    def refreshed(self) -> None:
        """The bases are new ones, and weights may be; the handle calls it."""
        self._in_kernels.forget()
        self._masters_agree = False

    def _init_group(self, group: dict[str, Any], params: list[Tensor], *lists: Any) -> bool:
        """Leaves to torch's step what no method moves, and what lies as torch's fused step takes it."""
        if self._copied and Handle.of(self) is None:
            raise RuntimeError(
                "this copy of GSRAdamW knows no bases: deepcopy the model and optimizer.handle together, or attach()"
            )
        scaler = {key: getattr(self, key, None) for key in ("grad_scale", "found_inf")}
        self._in_kernels.run(self.param_groups, **scaler)
        for p in group["params"]:
            if p.grad is not None:
                self._state_of(p)
        has_complex = super()._init_group(group, params, *lists)
        grads, exp_avgs, exp_avg_sqs, _, state_steps = lists
        rest = []
        for p, G, m, v, step in zip(params, grads, exp_avgs, exp_avg_sqs, state_steps):
            weight, master = self._left.pop(p, None), self.state[p].get("master")
            if p in self._in_kernels.moved:
                # once: the next step may come without the handle
                self._in_kernels.moved.discard(p)
                continue
            if weight is None and master is None and plain((p, G, m, v)):
                rest.append((p, G, m, v, step))
                continue
            matrices = None if weight is None else (weight.basis.split, weight.finite)
            move((p, G, m, v), step, group, master, matrices, **scaler)
        for place, kept in enumerate((params, grads, exp_avgs, exp_avg_sqs, state_steps)):
            kept[:] = [row[place] for row in rest]
        return has_complex

    def _state_of(self, p: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[p]
        if not state:
            state.update(self._state(p, {}))
        return state

    def _state(self, p: Tensor, saved: Mapping[str, Any]) -> dict[str, Tensor]:
        """What AdamW keeps of a parameter: new, or a copy of what was saved."""
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
        """Takes for new what a master no longer rounds to: weights that were loaded, merged or reset since."""
        for p, state in self.state.items():
            if "master" in state:
                master, held = state["master"], p.detach()
                master.copy_(torch.where(master.to(p.dtype) == held, master, held.float()))
        self._masters_agree = True

    def __getstate__(self) -> dict[str, Any]:
        copied = Handle.of(self) is not None
        settings = {"_state_dtype": self._state_dtype, "_master": self._master, "_built": True, "_copied": copied}
        return {**super().__getstate__(), **settings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._start()
        for group in self.param_groups:
            # a checkpoint of another AdamW may have been made without
            group.update(fused=True, foreach=None)

    def _start(self) -> None:
        self._in_kernels = InKernels()
        # parameters under a method that this step leaves to torch
        self._left: dict[Tensor, Weight] = {}
        self._masters_agree = True

    # whether it is complete; and whether it is a copy, of which the handle may not be
    _built = False
    _copied = False


def _check(group: Mapping[str, Any]) -> None:
    if group.get("amsgrad"):
        raise ValueError(AMSGRAD)
    if group.get("differentiable"):
        raise ValueError("differentiable: a fused step has no gradient; use torch.optim.AdamW(differentiable=True)")
