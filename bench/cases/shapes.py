"""Each stage, the step from G to G' and the update behind it, for each shape of a model: Triton's beside torch's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor

from bench.models import Model
from bench.optimizers import ADAMW, ATTACHED, OURS, TOLERANCE, Linears, first_step_error, makers, work
from bench.run import RHO, Makers, Run, Setting, Trial
from bench.transforms import draw, draw_bases, error, planned, truth, two_products
from gsr_kernels import ops, reference
from gsr_kernels.cli.floors import Work, transform

BACKENDS = ("torch", "triton")


def rows(run: Run) -> Iterator[dict]:
    setting = run.setting
    # a turn takes milliseconds
    run = replace(run, seconds=min(run.seconds, 0.3))
    for (d1, d2), count in setting.model.shapes.items():
        k = setting.directions(d1, d2)
        step = transform(d1, d2, k, setting.out_of_span, setting.basis_bytes, setting.gradient_bytes, setting.unit)
        labels = {**setting.labels, "shape": f"{count} x {d1}x{d2}"}
        kernels = {f"step {backend}": step * count for backend in BACKENDS}
        yield from run.compare(labels, kernels, partial(_steps, run, [(d1, d2)] * count), "step torch")
        yield from run.compare(
            labels, _update_work(setting, d1, d2, count), partial(_updates, run, (d1, d2), count), "update torch"
        )
        labels["shape"] = f"{d1}x{d2}"
        for stage, each in stages(d1, d2, k, setting.basis_bytes, setting.unit).items():
            kernels = {f"{stage} {backend}": each for backend in BACKENDS}
            yield from run.compare(labels, kernels, partial(_stage, run, stage, d1, d2), f"{stage} torch")


def stages(d1: int, d2: int, k: int, size: int, unit: str) -> dict[str, list[Work]]:
    """Return the work of the paper's stages on elements of ``size`` bytes."""
    side, core = size * k * min(d1, d2), size * k * k
    factors, entries = size * k * (d1 + d2), size * d1 * d2
    long = 2 * d1 * d2 * k
    short = 2 * min(d1, d2) * k * k
    return {
        "project": [Work(long, entries + factors - side, unit), Work(short, side + core, unit)],
        "skew": [Work(12 * k * k, 3 * core, "fp32")],
        "rescale": [Work(12 * k, 3 * size * k, "fp32")],
        "recompose": [Work(short, 2 * core + 2 * side, unit), Work(long, factors + entries, unit)],
    }


def _steps(run: Run, shapes: list[tuple[int, int]]) -> Makers:
    mode = run.setting.out_of_span
    bases, gradients = draw(run.setting, shapes, run.device)
    expected = truth(gradients[0], bases[0], RHO, mode)

    def torchs() -> Trial:
        outs = [torch.empty_like(G) for G in gradients]
        return run.trial(
            lambda: two_products(gradients, bases, outs, mode), lambda: error(outs[0], expected), TOLERANCE
        )

    def tritons() -> Trial:
        inside = [G.clone() for G in gradients]
        return Trial(planned(inside, bases, mode), lambda: error(inside[0], expected), TOLERANCE, "graph")

    return {"step torch": torchs, **({"step triton": tritons} if run.by_plan else {})}


def _update_work(setting: Setting, d1: int, d2: int, count: int) -> dict[str, list[Work]]:
    one = work(replace(setting, model=Model("", {(d1, d2): count}, {})))
    return {"update torch": one[ATTACHED], "update triton": one[OURS]}


def _updates(run: Run, shape: tuple[int, int], count: int) -> Makers:
    setting, mode = replace(run.setting, model=Model("", {shape: count}, {})), run.setting.out_of_span
    run = replace(run, setting=setting)
    model = Linears(run)
    made = makers(run, model)

    def torchs() -> Trial:
        (optimizer,) = made[ADAMW]()
        gradients, bases = [W.grad for W in model.parameters()], draw_bases(setting, setting.model.matrices, run.device)
        return run.trial(lambda: (two_products(gradients, bases, gradients, mode), optimizer.step()))

    def tritons() -> Trial:
        # also where an earlier measurement took it from the kernels
        with patch("gsr_kernels.backends.dispatch.measured", dict):
            (optimizer,) = made[OURS]()
            found = first_step_error(run, model, optimizer)
            return run.trial(optimizer.step, lambda: found, TOLERANCE)

    return {"update torch": torchs, **({"update triton": tritons} if run.by_plan else {})}


def _stage(run: Run, stage: str, d1: int, d2: int) -> Makers:
    """Return a stage on factors and gradient in the basis's dtype; between the products is float32."""
    (basis,), (G,) = draw(run.setting, [(d1, d2)], run.device)
    U, S, Vh = basis.U, basis.S, basis.Vh
    N = torch.randn(len(S), len(S), device=run.device)
    operands = {
        "project": (G.to(U.dtype), U, Vh),
        "skew": (N, S),
        "rescale": (N.diagonal().contiguous(), S, RHO),
        "recompose": (N, S, N.mT.contiguous(), U, S, Vh),
    }[stage]
    wide = [one.double() if isinstance(one, Tensor) else one for one in operands]
    expected = _together(getattr(reference, stage)(*wide))

    def of(backend: str) -> Trial:
        found = []

        def run_stage() -> None:
            found[:] = [getattr(ops, stage)(*operands, backend=backend)]

        return run.trial(run_stage, lambda: error(_together(found[0]), expected), TOLERANCE)

    return {f"{stage} {backend}": (lambda one=backend: of(one)) for backend in (BACKENDS if run.on_gpu else ["torch"])}


def _together(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    return result if isinstance(result, Tensor) else torch.cat(result)
