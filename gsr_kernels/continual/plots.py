"""The pictures of a sequential run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from gsr_kernels.continual.differences import over
from gsr_kernels.continual.figures import learned
from gsr_kernels.continual.metrics import BEFORE, ResultMatrix, Results
from gsr_kernels.plot import heatmap

# of the panels of a picture beside each other, in inches
WIDTH = 14.0
# of a name's letter, in inches, and a name that has no place beside the next
CHARACTER = 0.09
SLANTED: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}


def lost(matrix: ResultMatrix) -> np.ndarray:
    """Points lost since the best score before: on a task but the last (column), after each later one (row)."""
    rows = matrix.rows
    losses = np.full((len(matrix.tasks), len(matrix.columns) - 1), np.nan)
    for column, task in enumerate(matrix.columns[:-1]):
        learned = rows.index(task) if task in rows else 0
        for row in range(learned + 1, len(rows)):
            best = max(matrix.score(task, earlier) for earlier in rows[learned:row])
            losses[row - 1, column] = best - matrix.score(task, rows[row])
    return losses


def draw_forgetting(results: Results, path: str | os.PathLike[str]) -> None:
    """A heatmap a method: what each task has lost after each later one, mean over the seeds."""
    methods = results.methods()
    losses = {title: np.mean([lost(matrix) for matrix in each], axis=0) for title, each in methods.items()}
    lowest = min(0.0, *(np.nanmin(each) for each in losses.values()))
    largest = max(1.0, *(np.nanmax(np.abs(each)) for each in losses.values()))
    first = next(iter(methods.values()))[0]

    # a cell holds its number, and a panel its names
    rows, columns = len(first.tasks), len(first.columns) - 1
    wide, high = max(3.2, 0.5 * columns), max(3.4, 0.32 * rows)
    across = min(len(losses), max(1, int(WIDTH / wide)))
    down = -(-len(losses) // across)
    names = 0.075 * max(map(len, first.columns))
    size = (1.8 + names + wide * across, 0.9 + (high + names + 0.2) * down)
    figure = Figure(figsize=size, layout="constrained", dpi=150)
    axes = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    for axis in axes.flat[len(losses) :]:
        axis.set_visible(False)
    for axis, (title, each) in zip(axes.flat, losses.items()):
        image = heatmap(axis, each, largest, ".1f")
        # a method that learns nothing loses nothing either
        figures = (ResultMatrix.ap, learned, ResultMatrix.fra)
        end, gained, gone = (over([figure(matrix) for matrix in methods[title]]) for figure in figures)
        axis.set_title(f"{title}: AP {end}\nlearned {gained}, then lost {gone}", fontsize="medium")
        long = CHARACTER * max(map(len, first.columns)) > wide / columns
        axis.set_xticks(range(columns), first.columns[:-1], **(SLANTED if long else {}))
        axis.set_yticks(range(rows), [f"after {task}" for task in first.tasks])
        axis.tick_params(length=0, labelbottom=True)
        axis.spines[:].set_visible(False)
    # colours are even about zero; the bar shows the part that occurs
    figure.colorbar(image, ax=axes, label="points lost since the best score before").ax.set_ylim(lowest, largest)
    seeds = len(methods[title])
    figure.suptitle(f"What each method forgets of each task{f', mean of {seeds} seeds' if seeds > 1 else ''}")
    figure.savefig(path)


def draw_spectra(results: Results, path: str | os.PathLike[str]) -> None:
    """The singular values of some weights before and after all tasks, and by how much each has changed."""
    # every method sets out from the same weights
    start = next(iter(results.spectra.values()))[BEFORE]
    ends = {title: list(seen.values())[-1] for title, seen in results.spectra.items()}
    across = min(len(start), round(WIDTH / 3.5))
    down = -(-len(start) // across)
    figure = Figure(figsize=(3.5 * across, 0.8 + 4.6 * down), layout="constrained", dpi=150)
    axes = figure.subplots(2 * down, across, height_ratios=[3, 2] * down, squeeze=False)
    for axis in axes.reshape(down, 2, across).transpose(0, 2, 1).reshape(-1, 2)[len(start) :].flat:
        axis.set_visible(False)
    for place, name in enumerate(start):
        above, below = axes[2 * (place // across) :, place % across][:2]
        first = np.array(start[name])
        index = np.arange(1, len(first) + 1)
        for title, weights in {"start": start, **ends}.items():
            style = {"color": "black", "linestyle": "--", "zorder": 3} if title == "start" else {"alpha": 0.8}
            above.plot(index, weights[name], label=title, **style)
            below.plot(index, np.array(weights[name]) - first, **style)
        layer, _, weight = name.removesuffix(".weight").rpartition(".")
        above.set_title(f"{layer}\n{weight}", fontsize="small")
        above.set_ylim(bottom=0)
        above.tick_params(labelbottom=False)
        below.set_xlabel("singular value, from the largest", fontsize="small")
        if place % across == 0:
            above.set_ylabel("σ")
            below.set_ylabel("change of σ")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), fontsize="small")
    figure.suptitle("Singular values before the first task and after the last, and their change (first seed)")
    figure.savefig(path)


def ends_of(stages: Mapping[str, Sequence[tuple[int, float]]]) -> dict[str, int]:
    """Return the step at which each stage ends, of those with a loss, all stages counted on."""
    lengths = {stage: points[-1][0] for stage, points in stages.items() if points}
    return dict(zip(lengths, accumulate(lengths.values())))


def draw_losses(results: Results, path: str | os.PathLike[str]) -> None:
    """The training loss of each method, task after task."""
    # a method that takes all tasks at once names none
    ends = max(map(ends_of, results.losses.values()), key=len, default={})
    names = CHARACTER * max(map(len, ends), default=0)
    long = names * len(ends) > WIDTH
    figure = Figure(figsize=(WIDTH, 4.2 + names * long), layout="constrained", dpi=150)
    axis = figure.subplots()
    for title, stages in results.losses.items():
        own = ends_of(stages)
        for stage, end in own.items():
            steps, losses = zip(*stages[stage])
            begin = end - steps[-1]
            label = title if stage == next(iter(own)) else None
            color = axis.lines[-1].get_color() if label is None else None
            axis.plot([begin + step for step in steps], losses, ".-", label=label, color=color, alpha=0.8)
    for end in ends.values():
        axis.axvline(end, color="lightgrey", zorder=0)
    middles = [(begin + end) / 2 for begin, end in pairwise([0, *ends.values()])]
    above = axis.secondary_xaxis("top")
    above.set_xticks(middles, [*ends], fontsize="small", **(SLANTED | {"ha": "left"} if long else {}))
    above.tick_params(length=0)
    axis.set_xlabel("optimizer step")
    axis.set_ylabel("training loss")
    figure.legend(loc="outside lower center", ncols=6, fontsize="small")
    figure.suptitle("Loss of each task while it is learned (first seed)")
    figure.savefig(path)
