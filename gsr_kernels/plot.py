"""Pictures of the work of a method. Each function returns ``(figure, axis)``; with ``path`` it writes the picture there
and the values in it to a CSV file of the same name beside it. Needs matplotlib: ``pip install '.[plot]'``.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from torch import Tensor

from gsr_kernels.basis import SpectralBasis
from gsr_kernels.io.atomic import replacing

# of lines before and after a task
STYLES: dict[str, Any] = {"before": "--", "after": "-"}
Path_ = str | os.PathLike[str] | None
Bases = Mapping[str, SpectralBasis]


def spectra(before: Bases, after: Bases | None = None, path: Path_ = None) -> tuple[Figure, Axes]:
    """Draw singular values by index before a task (dashed) and after, means of a batch; a line ends truncated bases."""
    names = list(dict.fromkeys([*before, *(after or {})]))
    figure, axis = new_figure("direction, from the largest", "singular value", (8, max(4, 0.8 + 0.22 * len(names))))
    some = 10 if len(names) <= 10 else 20
    colours = dict(zip(names, colormaps[f"tab{some}"](np.arange(len(names)) % some)))
    rows = []
    for (when, style), bases in zip(STYLES.items(), (before, after or {})):
        for name, basis in bases.items():
            sigma = _mean(basis.S)
            axis.plot(range(1, len(sigma) + 1), sigma, style, color=colours[name])
            if not basis.full_rank:
                axis.axvline(basis.rank, color="grey", linewidth=0.8, linestyle=":")
            rows += [(name, when, direction + 1, value) for direction, value in enumerate(sigma)]
    axis.set_yscale("log")
    handles = [Line2D([], [], color=colours[name], label=name) for name in names]
    if after:
        handles += [Line2D([], [], color="grey", linestyle=style, label=when) for when, style in STYLES.items()]
    figure.legend(handles=handles, loc="outside right upper", fontsize="small")
    return finish(figure, axis, path, ("weight", "when", "direction", "sigma"), rows)


def rescaling(directions: Mapping[str, Tensor], path: Path_ = None) -> tuple[Figure, Axes]:
    """Draw ``g' / g`` of each direction of ``handle.directions(name)`` against its σ, apart by the sign of g."""
    sigma, g, rescaled = (directions[key].double().flatten().cpu().numpy() for key in ("sigma", "g", "rescaled"))
    kept = g != 0
    factor = rescaled[kept] / g[kept]
    figure, axis = new_figure("singular value", "g' / g")
    for sign, label in ((1, "g > 0"), (-1, "g < 0")):
        chosen = np.sign(g[kept]) == sign
        axis.plot(sigma[kept][chosen], factor[chosen], ".", label=label)
    axis.set(xscale="log", yscale="log")
    axis.axhline(1, color="grey", linewidth=0.8)
    axis.legend()
    rows = zip(sigma[kept], g[kept], rescaled[kept], factor)
    return finish(figure, axis, path, ("sigma", "g", "rescaled", "factor"), rows)


def energy(metrics: Mapping[str, Mapping[str, float]], path: Path_ = None) -> tuple[Figure, Axes]:
    """Draw where each gradient's energy is, of ``handle.metrics()``; ValueError where no step was recorded."""
    names = [name for name, record in metrics.items() if "outside_span" in record]
    if not names:
        raise ValueError("metrics holds no recorded step: call attach(record_every=1) and take a step")
    diagonal = np.array([metrics[name]["on_diagonal"] for name in names])
    outside = np.array([metrics[name]["outside_span"] for name in names])
    span = np.clip(1 - diagonal - outside, 0, None)
    figure, axis = new_figure("share of the gradient's energy", "", (7, 1.2 + 0.22 * len(names)))
    left = np.zeros(len(names))
    for share, label in ((diagonal, "diagonal of N"), (span, "rest of the span"), (outside, "outside the span")):
        axis.barh(names, share, left=left, label=label)
        left = left + share
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    figure.legend(loc="outside upper center", ncols=3, fontsize="small")
    rows = zip(names, diagonal, span, outside)
    return finish(figure, axis, path, ("weight", "on_diagonal", "rest_of_span", "outside_span"), rows)


def rotation(directions: Mapping[str, Tensor], path: Path_ = None) -> tuple[Figure, Axes]:
    """Draw how fast a step turns each singular vector, of ``handle.directions(name)``: norms of rows of H and K."""
    left, right = (_mean(directions[key]) for key in ("turn_left", "turn_right"))
    index = np.arange(1, len(left) + 1)
    figure, axis = new_figure("direction, from the largest", "norm of the row")
    axis.plot(index, left, label="H: left vectors")
    axis.plot(index, right, "--", label="K: right vectors")
    axis.set_yscale("log")
    axis.legend()
    return finish(figure, axis, path, ("direction", "turn_left", "turn_right"), zip(index, left, right))


def forgetting(scores: Sequence[Sequence[float]], tasks: Sequence[str], path: Path_ = None) -> tuple[Figure, Axes]:
    """Draw the points lost on each task (columns) since its best score, after each task learned (rows).

    Args:
        scores: ``scores[j][i]``, on task i after training on task j, both in the order of learning.
        tasks: their names.

    Raises ValueError where scores is not square, one row and column a task.
    """
    table = np.asarray(scores, dtype=float)
    if table.shape != (len(tasks), len(tasks)):
        raise ValueError(f"scores must have a row and a column for each of {len(tasks)} tasks, got {table.shape}")
    lost = np.full(table.shape, np.nan)
    for i in range(len(tasks)):
        for j in range(i, len(tasks)):
            lost[j, i] = table[i : j + 1, i].max() - table[j, i]
    names = 0.08 * max(map(len, tasks))
    figure, axis = new_figure(
        "task", "after learning", (max(5, 0.55 * len(tasks)) + names + 2, max(3, 0.35 * len(tasks)) + names + 1)
    )
    largest = max(1e-9, np.nanmax(lost))
    image = heatmap(axis, lost, largest, ".2f" if largest <= 1 else ".1f")
    axis.set_xticks(range(len(tasks)), tasks, rotation=45, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(tasks)), tasks)
    # colours are even about zero; the bar shows the part that occurs
    figure.colorbar(image, label="points lost since the best score").ax.set_ylim(0, largest)
    rows = [(tasks[j], tasks[i], table[j, i], value) for (j, i), value in np.ndenumerate(lost) if not np.isnan(value)]
    return finish(figure, axis, path, ("after", "task", "score", "lost"), rows)


def heatmap(axis: Axes, lost: np.ndarray, largest: float, digits: str) -> AxesImage:
    """Draw losses, in colours from minus to plus the largest, each with its number; NaN is left white."""
    image = axis.imshow(lost, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto")
    for (row, column), loss in np.ndenumerate(lost):
        if not np.isnan(loss):
            colour = "white" if abs(loss) > 0.6 * largest else "black"
            axis.text(column, row, f"{loss:{digits}}", ha="center", va="center", color=colour, fontsize="small")
    return image


def new_figure(x: str, y: str, size: tuple[float, float] = (7, 4)) -> tuple[Figure, Axes]:
    """Return a figure with one axis of these labels."""
    # no pyplot: nothing is kept open, no display is needed
    figure = Figure(figsize=size, layout="constrained", dpi=150)
    axis = figure.subplots()
    axis.set(xlabel=x, ylabel=y)
    return figure, axis


def finish(
    figure: Figure, axis: Axes, path: Path_, header: Sequence[str], rows: Iterable[Sequence[object]]
) -> tuple[Figure, Axes]:
    """Write a picture and its numbers where a path is given; return the picture."""
    if path is not None:
        figure.savefig(path)
        with replacing(Path(path).with_suffix(".csv")) as partial, partial.open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])
    return figure, axis


def _mean(values: Tensor) -> np.ndarray:
    return values.double().reshape(-1, values.shape[-1]).mean(0).cpu().numpy()
