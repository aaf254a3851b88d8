"""The two pictures of a sequential run."""

from __future__ import annotations

import os

import numpy as np
from matplotlib.figure import Figure

from gsr_kernels.continual.differences import over
from gsr_kernels.continual.metrics import BEFORE, ResultMatrix, Results
from gsr_kernels.plot import heatmap

# panels beside each other
ACROSS = 3


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

    across = min(ACROSS, len(losses))
    down = -(-len(losses) // across)
    figure = Figure(figsize=(1.5 + 4.6 * across, 0.6 + 4.0 * down), layout="constrained", dpi=150)
    axes = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    for axis in axes.flat[len(losses) :]:
        axis.set_visible(False)
    for axis, (title, each) in zip(axes.flat, losses.items()):
        image = heatmap(axis, each, largest, ".1f")
        axis.set_title(f"{title}, F.Ra {over([matrix.fra() for matrix in methods[title]])}")
        axis.set_xticks(range(each.shape[1]), first.columns[:-1])
        axis.set_yticks(range(each.shape[0]), [f"after {task}" for task in first.tasks])
        axis.tick_params(length=0, labelbottom=True)
        axis.spines[:].set_visible(False)
    # colours are even about zero; the bar shows the part that occurs
    figure.colorbar(image, ax=axes, label="points lost since the best score before").ax.set_ylim(lowest, largest)
    figure.suptitle(f"What each method forgets of what it learned (seeds: {len(methods[title])})")
    figure.savefig(path)


def draw_spectra(results: Results, path: str | os.PathLike[str]) -> None:
    """The singular values of some weights before and after all tasks, and by how much each has changed."""
    # every method sets out from the same weights
    start = next(iter(results.spectra.values()))[BEFORE]
    ends = {title: list(seen.values())[-1] for title, seen in results.spectra.items()}
    figure = Figure(figsize=(3.6 * len(start), 6), layout="constrained", dpi=150)
    axes = figure.subplots(2, len(start), sharex="col", height_ratios=[3, 2], squeeze=False)
    for (above, below), name in zip(axes.T, start):
        first = np.array(start[name])
        index = np.arange(1, len(first) + 1)
        for title, weights in {"start": start, **ends}.items():
            style = {"color": "black", "linestyle": "--", "zorder": 3} if title == "start" else {"alpha": 0.8}
            above.plot(index, weights[name], label=title, **style)
            below.plot(index, np.array(weights[name]) - first, **style)
        above.set_title(name.removesuffix(".weight"), fontsize="small")
        above.set_ylim(bottom=0)
        below.set_xlabel("singular value, from the largest")
    axes[0, 0].set_ylabel("σ")
    axes[1, 0].set_ylabel("change of σ since the start")
    axes[0, -1].legend()
    figure.suptitle("Singular values before the first task and after the last (first seed)")
    figure.savefig(path)
