"""The tables and figures of docs/evidence.md, from the finished runs of both studies."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from bench.docs.pages import DOCS, fill
from bench.studies import encoder_runs, encoder_tables, language_runs, language_tables, queue, stats, tables
from bench.studies.tables import Study

PAGE = DOCS / "evidence.md"
# the same bytes from the same runs
matplotlib.rcParams["svg.hashsalt"] = "evidence"
matplotlib.rcParams["svg.fonttype"] = "none"


def write(language: Path = language_runs.RESULTS) -> None:
    """Write both studies' parts of the page; ``language``: the results of the second."""
    write_encoder()
    write_language(results=language)


def write_encoder(page: Path = PAGE, results: Path = encoder_runs.RESULTS) -> None:
    """Fill the encoder's marks of the page and draw its figures into the folder of the page's name.

    Raises FileNotFoundError when there is no finished run, ValueError when the page lacks a mark.
    """
    records = _read(results, "encoder run --data DIR")
    fill(page, encoder_tables.blocks(records))
    _draw(encoder_tables.study(records), page.with_suffix(""), "differences", "trade_off")


def write_language(page: Path = PAGE, results: Path = language_runs.RESULTS) -> None:
    """Fill the language model's marks of the page, in the same way."""
    records = _read(results, "language run --work DIR")
    fill(page, language_tables.blocks(results))
    _draw(language_tables.study(records), page.with_suffix(""), "language", "language_trade_off")


def _read(results: Path, command: str) -> list[dict]:
    if records := queue.read(results):
        return records
    raise FileNotFoundError(f"{results} holds no finished run: python -m bench.studies {command}")


def _draw(study: Study, folder: Path, differences: str, trade_off: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    draw_differences(study.differences(), folder / f"{differences}.svg")
    tuned = {study.titles[method]: [metrics for _, metrics in runs] for method, runs in study.tuned().items()}
    draw_trade_off(tuned, folder / f"{trade_off}.svg")


def draw_differences(found: dict[str, list[float]], path: Path) -> None:
    """Draw each method's AP minus SeqFT's in points, seed by seed, with mean and 95 % interval."""
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


def draw_trade_off(tried: dict[str, list[tables.Metrics]], path: Path) -> None:
    """Draw AP against learning accuracy on the tuning seed: a line a method, dots that grow with the rate."""
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


def _save(figure: plt.Figure, path: Path) -> None:
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
