"""Pictures of what the tasks of a run did to its weights, each ``(figure, axis)``; see ``gsr_kernels.plot``.

``updates`` are the changes of every matrix by each task, ``{task: {name: ΔW}}``, in the order of learning.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from gsr_kernels.checks import check_pattern
from gsr_kernels.optim.targets import linear_matrices
from gsr_kernels.plot import Path_, finish, heatmap, new_figure

Updates = Mapping[str, Mapping[str, Tensor]]

# shares of the smallest entries, and singular values below this share of the largest are rounding
SHARES = np.linspace(0, 1, 101)
ROUNDING = 1e-5


def matrices(model: Any, pattern: str = "") -> dict[str, Tensor]:
    """Return the linear weights of a model, in float32 on the CPU, whose names a regular expression is found in.

    Raises ValueError where there is none.
    """
    found = {one.name: one.parameter.detach().float().cpu().clone() for one in linear_matrices(model)}
    wanted = check_pattern("--weights", pattern)
    chosen = {name: W for name, W in found.items() if wanted.search(name) and W.ndim == 2}
    if not chosen:
        raise ValueError(f"--weights {pattern!r} is found in no name of {', '.join([*found][:3])} …")
    return chosen


def updates_of(
    models: Iterable[tuple[str, Any]], pattern: str = ""
) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]], Any]:
    """Return the weights before all tasks, which is the first model, the updates since, and the last model."""
    each = iter(models)
    _, model = next(each)
    start = before = matrices(model, pattern)
    updates = {}
    for task, model in each:
        now = matrices(model, pattern)
        updates[task] = {name: W - before[name] for name, W in now.items()}
        before = now
    # what an adapter leaves alone is no part of its shift
    moved = [name for name in start if any(of[name].any() for of in updates.values())]
    return start, {task: {name: of[name] for name in moved} for task, of in updates.items()}, model


def shifts(updates: Updates, path: Path_ = None) -> tuple[Figure, Axes]:
    """Draw the distribution of the sizes of a task's shifts, of all entries: how many lie in each part of a decade."""
    figure, axis = new_figure("size of the shift of an entry", "share of the entries")
    rows = []
    for task, of in updates.items():
        sizes = torch.cat([one.abs().flatten() for one in of.values()])
        counts, edges = np.histogram(sizes[sizes > 0].log10().numpy(), bins=80)
        middles, shares = 10 ** ((edges[1:] + edges[:-1]) / 2), counts / len(sizes)
        axis.plot(middles, shares, label=task)
        rows += [(task, size, share) for size, share in zip(middles, shares)]
    axis.set_xscale("log")
    return _labelled(figure, axis, path, ("task", "size", "share"), rows)


def bottom_share(updates: Updates, path: Path_ = None) -> tuple[Figure, Axes]:
    """Draw the share of a task's shift, in squares, that its smallest entries hold together."""
    figure, axis = new_figure("smallest entries, a share of all", "their share of the shift, in squares")
    rows = []
    for task, of in updates.items():
        squares = torch.cat([one.double().square().flatten() for one in of.values()]).sort().values.cumsum(0)
        places = (SHARES * len(squares)).round().astype(int)
        held = [float(squares[place - 1] / squares[-1]) if place and squares[-1] > 0 else 0.0 for place in places]
        axis.plot(SHARES, held, label=task)
        rows += [(task, share, part) for share, part in zip(SHARES, held)]
    return _labelled(figure, axis, path, ("task", "smallest", "share"), rows)


def sign_conflicts(updates: Updates, path: Path_ = None) -> tuple[Figure, Axes]:
    """Draw, by layer, the share of entries that a task shifts against the sum of the shifts before it; NaN for none.

    Raises ValueError where there are not two tasks.
    """
    tasks = _several(updates)
    layers = list(dict.fromkeys(_layer(name) for name in updates[tasks[0]]))
    against = {name: torch.zeros_like(one) for name, one in updates[tasks[0]].items()}
    table = np.full((len(layers), len(tasks) - 1), np.nan)
    for column, (before, task) in enumerate(pairwise(tasks)):
        counts = dict.fromkeys(layers, (0, 0))
        for name, one in updates[task].items():
            against[name] += updates[before][name]
            signs = one.sign() * against[name].sign()
            opposite, both = counts[_layer(name)]
            counts[_layer(name)] = opposite + int((signs < 0).sum()), both + int((signs != 0).sum())
        table[:, column] = [opposite / both if both else math.nan for opposite, both in counts.values()]
    title = "share of entries that a task shifts against the sum before it"
    return _matrix(table, 1, layers, tasks[1:], title, ".2f", path, ("layer", "task", "opposite"))


def angles(updates: Updates, path: Path_ = None) -> tuple[Figure, Axes]:
    """Draw the angle between the updates of each two tasks, all weights as one vector, in degrees.

    Raises ValueError where there are not two tasks.
    """
    tasks = _several(updates)
    flat = [torch.cat([one.double().flatten() for one in updates[task].values()]) for task in tasks]
    table = np.full((len(tasks), len(tasks)), np.nan)
    for (i, one), (j, other) in ((a, b) for a in enumerate(flat) for b in enumerate(flat)):
        size = float(one.norm() * other.norm())
        if j < i and size > 0:
            table[i, j] = math.degrees(math.acos(max(-1.0, min(1.0, float(one @ other) / size))))
    return _matrix(
        table, 180, tasks, tasks, "angle between the updates, degrees", ".0f", path, ("task", "with", "degrees")
    )


def spectra(updates: Updates, path: Path_ = None) -> tuple[Figure, Axes]:
    """Draw the singular values of the updates, an adapter's up to its rank, as shares of the largest: the imbalance.

    A line is the geometric mean over the weights; where all directions are used alike it is level.
    """
    figure, axis = new_figure("singular value of the update, from the largest", "share of the largest")
    rows = []
    for task, of in updates.items():
        logs: dict[int, list[float]] = {}
        for name, one in of.items():
            sigma = torch.linalg.svdvals(one)
            kept = sigma[sigma > ROUNDING * sigma[0]].tolist()
            rows += [(task, name, index + 1, value) for index, value in enumerate(kept)]
            for index, value in enumerate(kept):
                logs.setdefault(index, []).append(math.log(value / kept[0]))
        axis.plot([index + 1 for index in logs], [math.exp(np.mean(each)) for each in logs.values()], label=task)
    axis.set_yscale("log")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _labelled(figure, axis, path, ("task", "weight", "index", "sigma"), rows)


@torch.no_grad()
def rank_sweep(
    model: Any, start: Mapping[str, Tensor], score: Callable[[], Mapping[str, float]], ranks: Sequence[int], path: Path_
) -> tuple[Figure, Axes]:
    """Draw the scores of the last model with the top k directions alone of each weight's change since ``start``.

    ``score`` scores the model as it is; what is no linear weight stays as the tasks left it. The last of ``ranks`` is
    at most the largest rank: the model itself.
    """
    figure, axis = new_figure("directions kept of the change of each weight", "score, %")
    parameters = {one.name: one.parameter for one in linear_matrices(model) if one.name in start}
    factors = {
        name: torch.linalg.svd(parameter.float().cpu() - start[name], full_matrices=False)
        for name, parameter in parameters.items()
    }
    found = {}
    for k in ranks:
        for name, parameter in parameters.items():
            U, S, Vh = factors[name]
            parameter.copy_(start[name] + (U[:, :k] * S[:k]) @ Vh[:k])
        found[k] = dict(score())
    for task in next(iter(found.values())):
        axis.plot(list(found), [scores[task] for scores in found.values()], ".-", label=task)
    axis.plot(list(found), [np.mean([*scores.values()]) for scores in found.values()], "k--", label="mean")
    axis.set_xscale("symlog", base=2, linthresh=1)
    rows = [(k, task, value) for k, scores in found.items() for task, value in scores.items()]
    return _labelled(figure, axis, path, ("k", "task", "score"), rows)


def _several(updates: Updates) -> list[str]:
    if len(updates) < 2:
        raise ValueError(f"two tasks are wanted, the run has learned {', '.join(updates) or 'none'}")
    return [*updates]


def _layer(name: str) -> str:
    number = re.search(r"\.(\d+)\.", name)
    return name[: number.end() - 1] if number else name


def _labelled(figure: Figure, axis: Axes, path: Path_, header: Sequence[str], rows: Any) -> tuple[Figure, Axes]:
    figure.legend(loc="outside right upper", fontsize="small")
    return finish(figure, axis, path, header, rows)


def _matrix(
    table: np.ndarray,
    largest: float,
    down: Sequence[str],
    across: Sequence[str],
    title: str,
    digits: str,
    path: Path_,
    header: Any,
) -> tuple[Figure, Axes]:
    names = 0.08 * max(map(len, [*down, *across]))
    size = (max(4, 0.6 * len(across)) + names + 1.5, max(2.5, 0.32 * len(down)) + names + 0.8)
    figure, axis = new_figure("", "", size)
    heatmap(axis, table, largest, digits)
    axis.set_xticks(range(len(across)), across, rotation=45, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(down)), down)
    axis.set_title(title, fontsize="medium")
    rows = [(down[i], across[j], value) for (i, j), value in np.ndenumerate(table) if not np.isnan(value)]
    return finish(figure, axis, path, header, rows)
