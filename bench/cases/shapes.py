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
from bench.run import RHO, Makers, Run, Trial
from bench.transforms import Problem, draw, draw_bases, error, two_products
from gsr_kernels import ops, reference
from gsr_kernels.cli.floors import Work

BACKENDS = ("torch", "triton")


def rows(run: Run) -> Iterator[dict]:
    # a turn takes milliseconds
    run = replace(run, seconds=min(run.seconds, 0.3))
    for (d1, d2), count in run.setting.model.shapes.items():
        setting = replace(run.setting, model=Model(run.setting.model.name, {(d1, d2): count}, {}))
        of_shape = replace(run, setting=setting)
        labels = {**setting.labels, "shape": f"{count} x {d1}x{d2}"}
        kernels = _both("step", setting.transform(d1, d2) * count)
        yield from run.compare(labels, kernels, partial(_steps, of_shape), "step torch")
        apart, ours = work(setting, ATTACHED, OURS).values()
        kernels = {"update torch": apart, "update triton": ours}
        yield from run.compare(labels, kernels, partial(_updates, of_shape), "update torch")
        labels["shape"] = f"{d1}x{d2}"
        for stage, each in stages(d1, d2, setting.directions(d1, d2), setting.basis_bytes, setting.unit).items():
            yield from run.compare(labels, _both(stage, each), partial(_stage, run, stage, d1, d2), f"{stage} torch")


def _both(stage: str, each: list[Work]) -> dict[str, list[Work]]:
    return {f"{stage} {backend}": each for backend in BACKENDS}


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


def _steps(run: Run) -> Makers:
    problem = Problem(run, run.setting.model.matrices)
    return {"step torch": problem.by_torch, **({"step triton": problem.ours} if run.by_plan else {})}


def _updates(run: Run) -> Makers:
    setting, model = run.setting, Linears(run)
    made = makers(run, model)

    def torchs() -> Trial:
        (optimizer,) = made[ADAMW]()
        gradients, bases = [W.grad for W in model.parameters()], draw_bases(setting, setting.model.matrices, run.device)
        mode = setting.out_of_span
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

    return {f"{stage} {backend}": partial(of, backend) for backend in (BACKENDS if run.on_gpu else ["torch"])}


def _together(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    return result if isinstance(result, Tensor) else torch.cat(result)
