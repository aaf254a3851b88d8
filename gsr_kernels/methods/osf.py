"""Orthogonal subspace fine-tuning: updates stay out of each weight's principal subspace."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from gsr_kernels.basis import Precision, SpectralBasis, split_heads
from gsr_kernels.checks import check_choice, check_count, check_kind, check_number, check_pattern
from gsr_kernels.messages import some
from gsr_kernels.methods.base import Heads, Method, State, TaskMethod
from gsr_kernels.methods.projections import FEWER, PROTECTING, operands
from gsr_kernels.methods.statistics import layer_importance

Variant = Literal["remove_block", "complement"]


@dataclass(frozen=True)
class OSF(Method):
    """The principal directions U_h, V_h of each weight are protected ("Sculpting Subspaces", arXiv 2504.07097):

        remove_block    G − U_h U_hᵀ G V_h V_hᵀ             the paper's equation
        complement      (I − U_h U_hᵀ) G (I − V_h V_hᵀ)     what public implementations train

    An adaptive optimizer makes steps that leave the subspace of its gradients, so the weight is projected after each
    step as well: what is protected keeps the value that it had when the task began. Needs float32 weights: the rounding
    of a 16-bit weight alone moves the protected block.

    Args:
        protect: the protected share of each weight's r directions, in (0, 1), rounded down: ``⌊share · r⌋``; or
            ``{parameter name: share}`` with shares in [0, 1], rounded to the nearest, as ``adaptive_shares`` makes
            them. A weight of share 1 does not move; of any other at least one direction is protected, and one is
            not. A half by default, as in PEFT.
        variant: one of the two.

    Raises ValueError where either is out of range, and in attach() for a weight without a share.
    """

    # the protected directions alone
    own_basis = True
    lasting = ("start",)

    protect: float | Mapping[str, float] = 0.5
    variant: Variant = "remove_block"

    def __post_init__(self) -> None:
        check_choice("variant", self.variant, Variant)
        shares = self.protect if isinstance(self.protect, Mapping) else {"every weight": self.protect}
        for name, share in shares.items():
            check_number(f"protect of {name}", share, 0, 1)
        for share, protected in enumerate(("nothing", "everything, so that nothing is trained")):
            if all(one == share for one in shares.values()):
                raise ValueError(f"protect = {share} for every weight protects {protected}")

    def __repr__(self) -> str:
        protect = f"{len(self.protect)} shares" if isinstance(self.protect, Mapping) else self.protect
        return f"OSF(protect={protect}, variant={self.variant!r})"

    def decompose(self, name: str, W: Tensor, rank: int | None, heads: Heads) -> SpectralBasis:
        """Return the protected directions, in full precision: 16 bits would leak."""
        if rank is not None:
            raise ValueError("rank must be None for OSF: it keeps the directions that it protects, see protect")
        r = min(split_heads(W, heads)[0].shape[-2:])
        if not isinstance(self.protect, Mapping):
            # 0.29 · 100 is 29, not 28: the rounding of the product is no direction
            protected = math.floor(self.protect * r + 1e-9)
        elif name in self.protect:
            protected = round(self.protect[name] * r)
        else:
            raise ValueError(
                f"protect has no share for it, but for {some(self.protect)}: add it, or leave it out by targets"
            )
        protected = r if self._holds(name) else max(1, min(protected, r - 1))
        precision: Precision = "fp64" if W.dtype == torch.float64 else "fp32"
        return SpectralBasis.of(W, protected, heads, precision)

    def prepare(self, name: str, W: Tensor, basis: SpectralBasis) -> State:
        """Return W as it is now, a mark where all of it is held, and what is not protected where products want it."""
        state = {"start": W.clone()}
        d1, d2 = basis.shape[-2:]
        if self._holds(name):
            state["held"] = W.new_ones(())
        elif basis.rank > FEWER[self.variant] * min(d1, d2):
            short = basis.Vh.mT if d1 >= d2 else basis.U
            whole = torch.linalg.qr(short.double(), mode="complete").Q
            state["minor"] = whole[..., basis.rank :].to(short.dtype).contiguous()
        return state

    def gradient(self, G: Tensor, W: Tensor, basis: SpectralBasis, state: State) -> Tensor:
        if "held" in state:
            return torch.zeros_like(G)
        return self._protect(*operands(G, basis), state)

    def _rewrite(self, G: Tensor, W: Tensor, basis: SpectralBasis, state: State, finite: Tensor) -> None:
        """See Method; without another tensor of G's size."""
        if "held" in state:
            G.masked_fill_(finite[..., None, None], 0)
            return
        wide, U, Vh = operands(G, basis)
        # to look at a GPU's flags would wait for it
        whole = finite.device.type == "cpu" and bool(finite.all())
        self._protect(wide, U, Vh, state, wide, None if whole else finite)
        if wide is not G:
            G.copy_(wide)

    def constrain(self, W: Tensor, basis: SpectralBasis, state: State) -> None:
        """Give the protected parts of W their values back.

        Of the change alone: the products of W itself would leave their rounding, more than small steps may leak.
        """
        start = state["start"]
        if "held" in state:
            W.copy_(start)
            return
        W.sub_(start)
        try:
            change, U, Vh = operands(W, basis)
            self._protect(change, U, Vh, state, change)
            if change is not W:
                W.copy_(change)
        finally:
            # whatever interrupts: a weight is no change
            W.add_(start)

    def _protect(
        self, G: Tensor, U: Tensor, Vh: Tensor, state: State, out: Tensor | None = None, finite: Tensor | None = None
    ) -> Tensor:
        minor = state.get("minor")
        return PROTECTING[self.variant](G, U, Vh, out, finite, None if minor is None else minor.to(G.dtype))

    def _holds(self, name: str) -> bool:
        return isinstance(self.protect, Mapping) and self.protect[name] == 1


@dataclass(frozen=True)
class AdaptiveOSF(TaskMethod):
    """OSF that protects more of the blocks that turn the residual stream less, as its paper has it.

    ``method = AdaptiveOSF().for_task(model, batches)`` measures them by ``layer_importance``, before each task.

    Args:
        mrr, trr: see ``adaptive_shares``.
        variant: see ``OSF``.
        layers: see ``layer_importance``.

    Raises ValueError where one is out of range.
    """

    makes: ClassVar[type[Method]] = OSF

    mrr: float = 0.1
    trr: float = 0.8
    variant: Variant = "remove_block"
    layers: str | None = None

    def __post_init__(self) -> None:
        check_choice("variant", self.variant, Variant)
        _check_shares(self.mrr, self.trr)
        if self.layers is not None:
            check_pattern("layers", self.layers)

    def for_task(self, model: nn.Module, batches: Iterable[Any], task: int = 0, tasks: int = 1) -> OSF:
        return OSF(adaptive_shares(layer_importance(model, batches, self.layers), self.mrr, self.trr), self.variant)


@dataclass(frozen=True)
class ScheduledOSF(TaskMethod):
    """OSF with equal shares that grow from task to task, by ``scheduled_share``; the first task is trained without it.

    Args:
        variant: see ``OSF``.

    Raises ValueError for another variant.
    """

    makes: ClassVar[type[Method]] = OSF

    variant: Variant = "remove_block"

    def __post_init__(self) -> None:
        check_choice("variant", self.variant, Variant)

    def for_task(self, model: nn.Module, batches: Iterable[Any], task: int = 0, tasks: int = 1) -> OSF | None:
        share = scheduled_share(task, tasks)
        return OSF(share, self.variant) if share else None


def adaptive_shares(importance: Mapping[str, float], mrr: float = 0.1, trr: float = 0.8) -> dict[str, float]:
    """Return protected shares ``mrr + I (trr − mrr)``, I the importance scaled to mean 1, clipped to [0, 1].

    Where an importance is negative, or all are the same, they tell nothing: every share is ``trr``, with a warning.

    Args:
        importance: by parameter name, as ``layer_importance`` measures it.
        mrr, trr: the share of a block without importance, and of one with the mean importance.

    Raises ValueError where not ``0 <= mrr <= trr <= 1``, or where importance is empty or not finite.
    """
    _check_shares(mrr, trr)
    check_kind(Mapping, "{parameter name: number}", importance=importance)
    values = importance.values()
    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"importance must be finite, of one matrix or more, got {dict(importance)}")
    low, high, mean = min(values), max(values), sum(values) / len(values)
    if low < 0 or high - low <= 1e-6 * high:
        warnings.warn(
            f"gsr_kernels: importance from {low:.3g} to {high:.3g} tells no block from another: every weight has the "
            f"protected share {trr:g}",
            stacklevel=2,
        )
        return dict.fromkeys(importance, trr)
    return {name: min(1.0, max(0.0, mrr + one / mean * (trr - mrr))) for name, one in importance.items()}


def _check_shares(mrr: float, trr: float) -> None:
    if not 0 <= check_number("mrr", mrr, 0, 1) <= check_number("trr", trr, 0, 1):
        raise ValueError(f"mrr and trr must be shares with 0 <= mrr <= trr <= 1, got {mrr} and {trr}")


def scheduled_share(task: int, tasks: int) -> float:
    """Return the paper's schedule for equal shares: ``task / tasks``, task counted from 0.

    The share of the first task is 0: it is trained without OSF. Raises ValueError where not ``0 <= task < tasks``.
    """
    check_count("task", task, 0)
    check_count("tasks", tasks)
    if task >= tasks:
        raise ValueError(f"task must lie in [0, tasks), got {task} of {tasks}")
    return task / tasks
