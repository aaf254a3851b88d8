"""The README's picture of one optimizer step, from the last GPU's rows, and how every picture is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from bench.docs.pages import IMAGES, Rows, grouped, measured
from bench.results import read

OURS = "#c2410c"
OTHERS = "#94a3b8"
FLOOR = "#0f172a"
STEP, RATIOS = IMAGES / "step.png", IMAGES / "ratios.png"


def save(figure: Figure, path: Path, **how: Any) -> None:
    """Write a picture, the same bytes where it is the same."""
    with matplotlib.rc_context({"svg.hashsalt": "evidence", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else {}, **how)


def draw_step(rows: Rows, path: Path) -> None:
    """Draw milliseconds of one optimizer step, the fastest on top, each with a mark at its floor.

    The rows are one device's; of several settings the first is drawn.
    """
    found = [row for row in rows if row["case"] == "optimizer_step" and not row["failed"]]
    labels = ("model", "shape", "dtype", "rank")
    found = [row for row in found if all(row[label] == found[0][label] for label in labels)]
    found.sort(key=lambda row: -float(row["p50_ms"]))
    p20, p50, p80, floor = ([float(row[name]) for row in found] for name in ("p20_ms", "p50_ms", "p80_ms", "floor_ms"))
    spread = [[t - low for t, low in zip(p50, p20)], [high - t for t, high in zip(p50, p80)]]
    colours = [OURS if row["variant"].startswith("GSRAdamW") else OTHERS for row in found]
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axis = figure.subplots()
    axis.barh(range(len(found)), p50, color=colours, height=0.6, xerr=spread, error_kw={"lw": 0.8})
    axis.scatter(floor, range(len(found)), marker="|", s=260, color=FLOOR, label="floor", zorder=3)
    axis.set_yticks(range(len(found)), [f"{row['variant']} ({row['launch']})" for row in found])
    for height, time in enumerate(p50):
        axis.annotate(f"{time:.3g}", (time, height), (4, 7), textcoords="offset points", fontsize=8)
    axis.set_xlabel("ms for one optimizer step, median and p20 to p80")
    axis.legend(loc="upper right", frameon=False)
    axis.margins(x=0.1)
    axis.spines[["top", "right"]].set_visible(False)
    model, shape, dtype, rank = (found[0][label] for label in labels)
    setting = f"{model}, {shape}, gradients x bases {dtype}, rank {rank}"
    axis.set_title(f"{setting}\n{measured(found)}", fontsize=9, loc="left")
    save(figure, path, dpi=150)


def draw_ratios(rows: Rows, path: Path) -> None:
    """Draw the transform and the literal chain as multiples of two bare products, the rows of one device."""
    found = [row for row in rows if row["variant"] != "two_products" and row["out_of_span"] == "drop"]
    of = grouped(found, "shape", "threads")
    figure = Figure(figsize=(7, 0.5 + 0.5 * len(of)), layout="constrained")
    axis = figure.subplots()
    for offset, variant, label, colour in (
        (-0.19, "rescale_gradient", "this package: two products", OURS),
        (0.19, "reference", "the paper's chain of four products and two skew matrices", OTHERS),
    ):
        ratios = [float(row["ratio"]) for each in of.values() for row in each if row["variant"] == variant]
        bars = axis.barh([place + offset for place in range(len(of))], ratios, height=0.36, color=colour, label=label)
        axis.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    names = [f"{shape.replace('x', ' × ')}, {threads} thread{'s' * (threads != '1')}" for shape, threads in of]
    axis.set_yticks(range(len(of)), names)
    axis.invert_yaxis()
    axis.margins(x=0.08)
    axis.axvline(1, color=FLOOR, linewidth=0.8)
    axis.set_xlabel("time over that of two bare matrix products of the same shapes")
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", frameon=False, fontsize=9, ncols=2)
    save(figure, path, dpi=120)


def write() -> None:
    """Draw the rows of the last GPU."""
    on_gpu = [row for row in read() if row["driver"] and row["case"] == "optimizer_step" and not row["failed"]]
    if on_gpu:
        draw_step([row for row in on_gpu if row["device"] == on_gpu[-1]["device"]], STEP)
    else:
        print("no GPU has timed an optimizer step: python -m bench --case optimizer_step on a machine with one")
