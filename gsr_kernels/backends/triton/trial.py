"""Trial of the ways to compute a step: their check against float64, and their times."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gsr_kernels import reference
from gsr_kernels.backends import choice
from gsr_kernels.backends.choice import Case
from gsr_kernels.backends.dispatch import lacking
from gsr_kernels.backends.torch.rescale_gradient import rescale_gradient
from gsr_kernels.backends.triton.configurations import on
from gsr_kernels.backends.triton.forms import UPDATES, Update
from gsr_kernels.backends.triton.moments import Moments, Settings
from gsr_kernels.backends.triton.plan import Plan
from gsr_kernels.backends.triton.plan_cache import plan_class
from gsr_kernels.basis import SpectralBasis

RHO = 0.5
GROUP: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
# sides of the matrix that is checked: several tiles with edges, in vectors of 16 bytes; one more for those that are not
SHORT, LONG, TRUNCATED = 152, 280, 72
# relative error of sums in float32
SUMS = 2e-6

Tensors = dict[str, Tensor]


def settle(device: torch.device, cases: Iterable[Case]) -> None:
    """Have this machine decide how it steps, and all ranks take the same; all of them must call."""
    choose = partial(choice.choose, choice.machine(device), check=partial(check, device=device))
    choice.choose_on_all_ranks(device, cases, partial(choose, clock=partial(clock, device=device)))


def check(way: str, case: Case, device: torch.device) -> str | None:
    """Return why a way is wrong for a kind of step, empty where it is right, None where it is no way of its own.

    It is compared with float64 on a small matrix of the same form, in memory that held NaN. The error may be twice that
    of the same products rounded at the same places. A gradient with a NaN must change nothing.
    """
    d1, d2, k = case.shape
    odd = 1 if d2 % 8 or k % 8 else 0
    if lacking(way, device) or (odd and way in ("tma", "cutlass")):
        return None
    if way == "cutlass" and (case.op, case.gradient, case.basis) != ("update", torch.float32, torch.float16):
        return None
    rows, columns = (odd + (SHORT if side == min(d1, d2) else LONG) for side in (d1, d2))
    generator = torch.Generator().manual_seed(0)
    W, G = (torch.randn(rows, columns, generator=generator) for _ in range(2))
    # on the CPU: a GPU would look for its best driver first
    whole = SpectralBasis.of(W, min(rows, columns) if k == min(d1, d2) else TRUNCATED + odd)
    basis = SpectralBasis(whole.U.to(device, case.basis), whole.S.to(device), whole.Vh.to(device, case.basis))
    W, G = W.to(device), G.to(device, case.gradient)
    broken = G.clone()
    broken[-1, -1] = torch.nan

    kept = UPDATES[case.gradient]
    # the state of AdamW as torch keeps it, and the last kind: with a narrow copy, all that the epilogue can write
    for update in dict.fromkeys((kept[0], kept[-1])) if case.op == "update" else (None,):
        truth, rounded = (_truth(case, G, basis, W, update, dtype) for dtype in (None, case.basis))
        found = _run(way, case, basis, G, W, update)
        for name, value in truth.items():
            allowed = 2 * _error(rounded[name], value) + SUMS
            if not (error := _error(found[name], value)) <= allowed:
                return f"{name} of a matrix {rows} x {columns} has an error of {error:.1e}, {allowed:.1e} is allowed"
        left = _run(way, case, basis, broken, W, update)
        before = {"G'": broken} if update is None else _start(W, update)
        if any(not torch.equal(left[name].nan_to_num(), value.nan_to_num()) for name, value in before.items()):
            return f"a gradient {rows} x {columns} with a NaN in it changes what it must leave"
    return ""


def clock(way: str, case: Case, device: torch.device) -> float:
    """Return the seconds that a way takes for one matrix on a GPU, the median of ``RUNS``."""
    # events are of the current device's streams, which need not be this one's
    with on(device):
        return _clock(way, case, device)


def _clock(way: str, case: Case, device: torch.device) -> float:
    d1, d2, k = case.shape
    # of its own: who trains after it draws as who finds the answer kept
    draw = partial(torch.randn, device=device, generator=torch.Generator(device).manual_seed(0))
    basis = SpectralBasis(draw(d1, k).to(case.basis), draw(k).abs(), draw(k, d2).to(case.basis))
    G, W = draw(d1, d2).to(case.gradient), draw(d1, d2).to(case.gradient)
    once = _by_torch(case, basis, G, W) if way == "torch" else _by_plan(way, case, basis, G, W)
    times = []
    for _ in range(choice.WARM + choice.RUNS):
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        once()
        ended.record()
        ended.synchronize()
        times.append(begun.elapsed_time(ended) / 1e3)
    return statistics.median(times[choice.WARM :])


def _by_torch(case: Case, basis: SpectralBasis, G: Tensor, W: Tensor) -> Callable[[], object]:
    out = torch.empty_like(G)
    rescaled = partial(rescale_gradient, G, basis.U, basis.S, basis.Vh, RHO, case.out_of_span, out)
    if case.op == "step":
        return rescaled
    W.grad = out
    optimizer = torch.optim.AdamW([W], fused=True)
    return lambda: (rescaled(), optimizer.step())


def _by_plan(way: str, case: Case, basis: SpectralBasis, G: Tensor, W: Tensor) -> Callable[[], object]:
    plan = _plan(way, case, basis, UPDATES[case.gradient][0] if case.op == "update" else None)
    plan.warmup()
    if case.op == "step":
        return partial(plan.run, [G])
    moments = Moments(W, torch.zeros_like(W), torch.zeros_like(W), *_counters(W.device), 0)
    return partial(plan.update, [G], [moments], _settings(W.device))


def _plan(way: str, case: Case, basis: SpectralBasis, update: Update | None) -> Plan:
    return plan_class(way)(
        [basis], [case.gradient], RHO, [case.out_of_span], updates=None if update is None else [update]
    )


def _run(way: str, case: Case, basis: SpectralBasis, G: Tensor, W: Tensor, update: Update | None) -> Tensors:
    """Return what a step writes, G' or the weight and its state after AdamW."""
    plan = _plan(way, case, basis, update)
    if update is None:
        out = torch.full_like(G, torch.nan)
        plan.run([G], [out])
        return {"G'": out}
    state = _start(W, update)
    kept = state["weight"], state["exp_avg"], state["exp_avg_sq"]
    moments = Moments(*kept, *_counters(W.device), 0, state.get("copy"))
    plan.update([G], [moments], _settings(W.device))
    return state


def _start(W: Tensor, update: Update) -> Tensors:
    # a weight no larger than its step, and a second moment near 1: an error of G' shows in all of them
    weight = (GROUP["lr"] * W).to(update.weight)
    m = torch.zeros_like(W, dtype=update.moment)
    state = {"weight": weight, "exp_avg": m, "exp_avg_sq": torch.ones_like(m)}
    return state if update.copied is None else {**state, "copy": weight.to(update.copied)}


def _counters(device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.zeros((), device=device), torch.zeros((), dtype=torch.int64, device=device)


def _settings(device: torch.device) -> Settings:
    settings = Settings(1, device)
    settings.set([GROUP], None, None)
    return settings


def _truth(
    case: Case, G: Tensor, basis: SpectralBasis, W: Tensor, update: Update | None, rounded: torch.dtype | None
) -> Tensors:
    """Return the result in float64; with ``rounded`` operands of products are rounded to it, results to their dtype."""

    def to(X: Tensor, dtype: torch.dtype) -> Tensor:
        return X if rounded is None else X.to(dtype).double()

    U, S, Vh, wide = basis.U.double(), basis.S.double(), basis.Vh.double(), G.double()
    inside = to(wide, case.basis)
    g = ((inside @ Vh.mT) * U).sum(0)
    delta = reference.rescale(g, S, RHO) - g
    d1, d2, _ = basis.dims
    if case.out_of_span == "keep" or d1 == d2:
        found = wide + to(U * delta, case.basis) @ Vh
    elif d1 > d2:
        found = U @ to(U.mT @ inside + delta[:, None] * Vh, case.basis)
    else:
        found = to(inside @ Vh.mT + U * delta, case.basis) @ Vh
    if update is None:
        return {"G'": to(found, G.dtype)}

    # the first step of AdamW (Loshchilov and Hutter 2019) from ``_start``
    (beta1, beta2), start = GROUP["betas"], _start(W, update)
    m, v = (1 - beta1) * found, beta2 * start["exp_avg_sq"].double() + (1 - beta2) * found.square()
    step = m / (1 - beta1) / ((v / (1 - beta2)).sqrt() + GROUP["eps"])
    weight = start["weight"].double() * (1 - GROUP["lr"] * GROUP["weight_decay"]) - GROUP["lr"] * step
    moved = {"weight": to(weight, update.weight), "exp_avg": to(m, update.moment), "exp_avg_sq": to(v, update.moment)}
    return moved if update.copied is None else {**moved, "copy": to(weight, update.copied)}


def _error(found: Tensor, truth: Tensor) -> float:
    return ((found.double() - truth).norm() / truth.norm()).item()
