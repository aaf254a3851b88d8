"""Comparison of several runs: figures of every run and method, over orders of the tasks too, against one of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gsr_kernels.continual.differences import interval
from gsr_kernels.continual.figures import FIGURES, compared, gains, measure
from gsr_kernels.continual.folder import read_results
from gsr_kernels.continual.report import figures, verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# what makes two seeds of two runs a pair: the tasks, their order and rows, and the number of the seed
Key = tuple[tuple[tuple[str, str], ...], int]
# the figures of a run's method, by seed
Entry = dict[Key, Mapping[str, float]]


def gather(folders: Sequence[Path]) -> tuple[dict[str, Entry], str]:
    """Return the methods of all runs, those that were run in several orders also over all of these, and the baseline.

    Raises ValueError for a folder of no run, or one that is given twice.
    """
    names = [folder.name for folder in folders]
    entries: dict[str, Entry] = {}
    orders: dict[tuple[str, frozenset], dict[str, Entry]] = {}
    baseline = ""
    for folder, name in zip(folders, names):
        results, config = read_results(folder)
        tasks = tuple((task, about["sha256"]) for task, about in config["tasks"].items())
        first, count = (config["settings"].get(each) for each in ("first_seed", "seeds"))
        # a run of before they were kept
        seeds = results.seeds or range(first, first + count)
        told = name if names.count(name) == 1 else str(folder)
        for title, found in measure(results)[0].items():
            label = f"{told}: {title}"
            if label in entries:
                raise ValueError(f"RUN {folder} is given twice")
            entries[label] = {(tasks, seed): each for seed, each in zip(seeds, found)}
            orders.setdefault((title, frozenset(tasks)), {})[label] = entries[label]
            if not baseline or (title == results.baseline and told in baseline):
                baseline = label
    for (title, _), several in orders.items():
        number = len({key[0] for entry in several.values() for key in entry})
        if number > 1:
            union = {key: each for entry in several.values() for key, each in entry.items()}
            entries[f"{number} orders: {title}"] = union
    return entries, baseline


def compare(entries: Mapping[str, Entry], baseline: str) -> tuple[str, dict[str, Any]]:
    """Return the table with the differences in words, and all of it for JSON."""
    if baseline not in entries:
        raise ValueError(f"--baseline {baseline!r} is none of {'; '.join(entries)}")
    parts = [figures({label: [*entry.values()] for label, entry in entries.items()})]
    data: dict[str, Any] = {
        "figures": {label: [*entry.values()] for label, entry in entries.items()},
        "baseline": baseline,
        "gains": {},
    }
    alone = []
    for label, entry in entries.items():
        # over several orders against the baseline's method over these
        against = baseline
        if " orders: " in label:
            against = f"{label.partition(': ')[0]}: {baseline.partition(': ')[2]}"
        common = [key for key in entry if key in entries.get(against, {})]
        if label == against:
            continue
        if not common:
            alone.append(label)
            continue
        pair = [entry[key] for key in common], [entries[against][key] for key in common]
        parts.append(verdict(label, *pair, against))
        data["gains"][label] = {"against": against, **compared(gains(*pair))}
    if alone:
        parts.append(f"With no seed, order and rows in common with {baseline}: {', '.join(alone)}.")
    return "\n\n".join(parts) + "\n", data


def draw(entries: Mapping[str, Entry], path: str | os.PathLike[str] | None = None) -> tuple[Figure, Sequence[Axes]]:
    """Draw F.Ra and AP of every entry: each seed, the mean, and its 95 % interval where there are several."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 1.2 + 0.4 * len(entries)), layout="constrained", dpi=150)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, name in zip(axes, ("F.Ra", "AP")):
        for place, entry in enumerate(entries.values()):
            values = [each[name] for each in entry.values() if name in each]
            if not values:
                continue
            axis.plot(values, [place] * len(values), ".", color="grey")
            mean = sum(values) / len(values)
            low, high = interval(values) or (mean, mean)
            axis.errorbar(mean, place, xerr=[[mean - low], [high - mean]], fmt="o", color="C0", capsize=3)
        axis.set_yticks(range(len(entries)), list(entries))
        axis.set_xlabel(f"{name}, {'more' if FIGURES[name].sign > 0 else 'less'} is better")
        axis.grid(axis="x", alpha=0.3)
    axes[0].invert_yaxis()
    figure.suptitle("Mean and its 95 % interval over the seeds; each seed")
    if path is not None:
        figure.savefig(path)
    return figure, axes
