"""The figures of docs/evidence.md, from the finished runs."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from . import stats, tables

# the same bytes from the same runs
matplotlib.rcParams["svg.hashsalt"] = "evidence"
matplotlib.rcParams["svg.fonttype"] = "none"


def differences(found: dict[str, list[float]], path: Path) -> None:
    """Each method's AP minus SeqFT's in points, seed by seed, with mean and 95 % interval."""
    figure, axes = plt.subplots(figsize=(7, 0.5 * len(found) + 1.4))
    for row, d in enumerate(reversed(found.values())):
        mean = stats.interval(d)
        axes.plot(d, [row] * len(d), "o", color="0.7", markersize=4)
        axes.plot([mean.low, mean.high], [row, row], color="C0", linewidth=2)
        axes.plot(mean.mean, row, "D", color="C0", markersize=6)
    axes.axvline(0, color="black", linewidth=0.8)
    margin = 100 * tables.MARGIN
    axes.axvspan(-margin, margin, color="0.95", zorder=0)
    axes.set_yticks(range(len(found)), list(reversed(found)))
    axes.set_xlabel("AP minus SeqFT's, points; dots: seeds, bar: 95 % interval, grey: ±2 points")
    _save(figure, path)


def trade_off(tried: dict[str, list[dict[str, float]]], path: Path) -> None:
    """AP against learning accuracy over the rates, on the tuning seed; a line a method, dots grow with the rate."""
    figure, axes = plt.subplots(figsize=(7, 5))
    for title, found in tried.items():
        x, y = [100 * f["LA"] for f in found], [100 * f["AP"] for f in found]
        (line,) = axes.plot(x, y, linewidth=1, label=title)
        axes.scatter(x, y, s=[25 * (i + 1) for i in range(len(x))], color=line.get_color())
    low, high = axes.get_xlim()
    axes.plot([low, high], [low, high], "--", color="0.6", linewidth=1, label="nothing forgotten")
    axes.set_xlim(low, high)
    axes.set_xlabel("learning accuracy")
    axes.set_ylabel("AP")
    axes.legend(fontsize=8)
    _save(figure, path)


def _save(figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
