"""The tables and figures of docs/evidence.md, from the finished runs of both studies."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from bench.docs.figures import save
from bench.docs.pages import DOCS, fill
from bench.results import RESULTS
from bench.studies import encoder, language, stats
from bench.studies.study import Study
from bench.studies.tables import MARGIN, Metrics, Tables

PAGE = DOCS / "evidence.md"
STUDIES = (encoder.STUDY, language.STUDY)


def write() -> None:
    """Write both studies' parts of the page from the committed runs."""
    for study in STUDIES:
        write_study(study, RESULTS / study.name)


def write_study(study: Study, folder: Path, page: Path = PAGE) -> None:
    """Fill a study's marks of the page and draw its figures into the folder of the page's name.

    Raises FileNotFoundError where `folder` holds no finished run, ValueError when the page lacks a mark.
    """
    found = Tables(study, folder)
    fill(page, found.blocks())
    figures = page.with_suffix("")
    figures.mkdir(exist_ok=True)
    draw_differences(found.differences(), figures / f"{study.name}.svg")
    tuned = {found.titles[method]: [metrics for _, metrics in runs] for method, runs in found.tuned().items()}
    draw_trade_off(tuned, study.learning, figures / f"{study.name}_trade_off.svg")


def draw_differences(found: dict[str, list[float]], path: Path) -> None:
    """Draw each method's AP minus SeqFT's in points, seed by seed, with mean and 95 % interval."""
    figure = Figure(figsize=(7, 0.5 * len(found) + 1.4))
    axes = figure.subplots()
    for row, d in enumerate(reversed(found.values())):
        mean = stats.interval(d)
        axes.plot(d, [row] * len(d), "o", color="0.7", markersize=4)
        axes.plot([mean.low, mean.high], [row, row], color="C0", linewidth=2)
        axes.plot(mean.mean, row, "D", color="C0", markersize=6)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.axvspan(-100 * MARGIN, 100 * MARGIN, color="0.95", zorder=0)
    axes.set_yticks(range(len(found)), list(reversed(found)))
    axes.set_xlabel("AP minus SeqFT's, points; dots: seeds, bar: 95 % interval, grey: ±2 points")
    save(figure, path, bbox_inches="tight")


def draw_trade_off(tried: dict[str, list[Metrics]], learning: str, path: Path) -> None:
    """Draw AP against learning on the tuning seed: a line a method, larger dots for higher rates."""
    figure = Figure(figsize=(7, 5))
    axes = figure.subplots()
    for title, found in tried.items():
        x, y = [100 * f[learning] for f in found], [100 * f["AP"] for f in found]
        (line,) = axes.plot(x, y, linewidth=1, label=title)
        axes.scatter(x, y, s=[25 * (i + 1) for i in range(len(x))], color=line.get_color())
    low, high = axes.get_xlim()
    axes.plot([low, high], [low, high], "--", color="0.6", linewidth=1, label="nothing forgotten")
    axes.set_xlim(low, high)
    axes.set_xlabel("learning accuracy")
    axes.set_ylabel("AP")
    axes.legend(fontsize=8)
    save(figure, path, bbox_inches="tight")
