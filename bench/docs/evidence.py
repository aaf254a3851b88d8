"""The tables and figures of docs/evidence.md and its appendix, from the committed runs of both studies."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bench.docs.figures import OTHERS, OURS, save
from bench.docs.pages import DOCS, fill
from bench.results import RESULTS
from bench.studies import best_case, encoder, frontier, language, stats
from bench.studies.answer import COMPARED, Answer
from bench.studies.curves import Point
from bench.studies.study import BASELINE, KEPT, Study
from bench.studies.tables import MARGIN, Metrics, Tables

PAGE, APPENDIX = DOCS / "evidence.md", DOCS / "evidence_appendix.md"
FRONTIER = DOCS / "evidence" / "frontier.svg"
STUDIES = (encoder.STUDY, language.STUDY)
# as the page calls them
TESTBEDS = {language.STUDY.name: "writer", encoder.STUDY.name: "classifier"}


def write() -> None:
    """Write both pages and all figures."""
    for study in STUDIES:
        write_earlier(study, RESULTS / study.name, APPENDIX)
    packed = {study.name: RESULTS / study.name / frontier.PACKED for study in STUDIES}
    answers = [Answer(study, packed[study.name]) for study in STUDIES[::-1] if packed[study.name].exists()]
    for answer in answers:
        fill(PAGE, answer.page())
        fill(APPENDIX, answer.appendix())
    fill(APPENDIX, {"best case": best_case.described()})
    FRONTIER.parent.mkdir(exist_ok=True)
    draw_frontier([answer for answer in answers if answer.planned()], FRONTIER)


def write_earlier(study: Study, folder: Path, page: Path) -> None:
    """Fill a study's marks of the page and draw its figures into the folder of the page's name.

    Raises ValueError when the page lacks a mark.
    """
    found = Tables(study, folder)
    fill(page, found.blocks())
    figures = page.with_suffix("")
    figures.mkdir(exist_ok=True)
    draw_differences(found.differences(), figures / f"{study.name}.svg")
    tuned = {found.titles[method]: [metrics for _, metrics in runs] for method, runs in found.tuned().items()}
    draw_trade_off(tuned, study.earlier.learning, figures / f"{study.name}_trade_off.svg")


def draw_frontier(answers: Sequence[Answer], path: Path) -> None:
    """Draw what is kept against what is learned: a column a configuration, beside the baseline's own curve in grey.

    A row is one thing that is kept in one study, the titles are its configurations. Dots are seeds, lines the means of
    their rates, from no training on. Diamonds are the table's means, on the line of the learning that is compared at.
    """
    rows = [(answer, kept) for answer in answers for kept in answer.kept]
    columns = max(len(answer.planned()) for answer in answers) - 1
    figure = Figure(figsize=(2.4 * columns + 0.6, 2.5 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False, sharex="row", sharey="row")
    for axes, (answer, kept) in zip(grid, rows):
        names = [name for name in answer.planned() if name != BASELINE]
        for axis in axes[len(names) :]:
            axis.set_axis_off()
        level = statistics.fmean(answer.levels().values())
        for axis, name in zip(axes, names):
            axis.axvline(level, color="black", linewidth=0.8, linestyle=":", zorder=0)
            for one, colour in ((BASELINE, OTHERS), (name, OURS)):
                _draw_curve(axis, list(answer.planned()[one].values()), kept, colour)
                mean = statistics.fmean(seed[COMPARED] for seed in answer.equal(one, kept).values())
                axis.plot(level, 100 * mean, "D", color=colour, markersize=7, markerfacecolor="white", zorder=3)
            # in the corner that no curve comes near
            corner = (0.04, 0.04 if kept == KEPT else 0.9)
            axis.annotate("SeqFT", corner, xycoords="axes fraction", fontsize=8, color=OTHERS, weight="bold")
            axis.spines[["top", "right"]].set_visible(False)
            axis.tick_params(labelsize=7)
            axis.set_xlabel("learning, %", fontsize=8)
            axis.set_title(answer.title(name), fontsize=10, color=OURS)
        axes[0].set_ylabel(f"{TESTBEDS[answer.study.name]}\n{kept}, %", fontsize=9)
        start = answer.planned()[BASELINE][frontier.SEEDS[0]][0]
        _note(axes[0], "compared\nhere", (level, axes[0].get_ylim()[0]), (-4, 4), "right")
        _note(axes[0], "before any task", (start.learning, start.kept[kept]), (8, 0 if kept == KEPT else -5), "left")
    save(figure, path)


def _note(axis: Any, text: str, point: tuple[float, float], offset: tuple[float, float], side: str) -> None:
    axis.annotate(text, point, offset, textcoords="offset points", fontsize=7, ha=side)


def _draw_curve(axis: Any, curves: Sequence[Sequence[Point]], kept: str, colour: str) -> None:
    each = [(point.learning, point.kept[kept]) for curve in curves for point in curve]
    axis.plot(*zip(*each), ".", color=colour, markersize=2, alpha=0.5)
    mean = [
        tuple(statistics.fmean(values) for values in zip(*((one.learning, one.kept[kept]) for one in points)))
        for points in zip(*curves)
    ]
    axis.plot(*zip(*mean), "o-", color=colour, markersize=4, linewidth=1.5)


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
