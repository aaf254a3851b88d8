"""The two pictures of a sequential run."""

from __future__ import annotations

import os

import numpy as np
from matplotlib.figure import Figure

from gsr_kernels.continual.experiment import Results
from gsr_kernels.continual.metrics import BEFORE, ResultMatrix


def lost(matrix: ResultMatrix) -> np.ndarray:
    """Points lost on a task (column) since its best score before, after each task (row); NaN before it is learned."""
    rows = (BEFORE, *matrix.tasks)
    losses = np.full((len(matrix.tasks), len(matrix.columns)), np.nan)
    for column, task in enumerate(matrix.columns):
        learned = rows.index(task) if task in rows else 0
        for row in range(learned + 1, len(rows)):
            best = max(matrix.score(task, earlier) for earlier in rows[learned:row])
            losses[row - 1, column] = best - matrix.score(task, rows[row])
    return losses


def draw_forgetting(results: Results, path: str | os.PathLike[str]) -> None:
    """A heatmap a method: what each task has lost after each later one, mean over the seeds."""
    methods = results.methods()
    losses = {title: np.mean([lost(matrix) for matrix in each], axis=0) for title, each in methods.items()}
    largest = max(1.0, *(np.nanmax(np.abs(each)) for each in losses.values()))
    first = next(iter(methods.values()))[0]

    figure = Figure(figsize=(1.2 + 5.2 * len(losses), 4.6), layout="constrained", dpi=150)
    axes = figure.subplots(1, len(losses), squeeze=False, sharey=True)[0]
    for axis, (title, each) in zip(axes, losses.items()):
        image = axis.imshow(each, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto")
        for (row, column), loss in np.ndenumerate(each):
            if not np.isnan(loss):
                colour = "white" if abs(loss) > 0.6 * largest else "black"
                axis.text(column, row, f"{loss:.1f}", ha="center", va="center", color=colour)
        mean = np.mean([matrix.fra() for matrix in methods[title]])
        axis.set_title(f"{title}: F.Ra {mean:.1f}")
        axis.set_xticks(range(len(first.columns)), first.columns, rotation=30, ha="right")
        axis.set_yticks(range(len(first.tasks)), [f"after {task}" for task in first.tasks])
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label="points lost since the best score before")
    seeds = len(next(iter(methods.values())))
    figure.suptitle(f"What is forgotten of each task, mean of {seeds} seed(s)")
    figure.savefig(path)


def draw_spectra(results: Results, path: str | os.PathLike[str]) -> None:
    """The singular values of some weights before and after all tasks, and by how much each has changed."""
    names = list(results.spectra["start"])
    figure = Figure(figsize=(3.6 * len(names), 6), layout="constrained", dpi=150)
    axes = figure.subplots(2, len(names), sharex="col", sharey="row", height_ratios=[3, 2], squeeze=False)
    for column, name in enumerate(names):
        above, below = axes[:, column]
        start = np.array(results.spectra["start"][name])
        for title, weights in results.spectra.items():
            values = np.array(weights[name])
            style = {"color": "black", "linestyle": "--", "zorder": 3} if title == "start" else {"alpha": 0.8}
            above.plot(range(1, len(values) + 1), values, label=title, **style)
            below.plot(range(1, len(values) + 1), values - start, **style)
        above.set_title(name.removesuffix(".weight"))
        below.set_xlabel("singular value, from the largest")
    axes[0, 0].set_ylabel("σ")
    axes[1, 0].set_ylabel("change of σ since the start")
    axes[0, 0].legend()
    figure.suptitle("Singular values before the first task and after the last (first seed)")
    figure.savefig(path)
