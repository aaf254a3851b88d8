"""The pictures of bench/results, into docs/images, as SVG and PNG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.docs.pages import IMAGES
from bench.results import read

OURS = "#c2410c"
OTHERS = "#94a3b8"
FLOOR = "#0f172a"

Rows = Sequence[dict[str, str]]


def draw_step(rows: Rows, axis: Axes) -> None:
    """Draw milliseconds of one optimizer step, the fastest on top, each with a mark at its floor."""
    rows = sorted(rows, key=lambda row: -float(row["p50_ms"]))
    times = [float(row["p50_ms"]) for row in rows]
    spread = [[t - float(row["p20_ms"]), float(row["p80_ms"]) - t] for t, row in zip(times, rows)]
    colours = [OURS if row["variant"].startswith("GSRAdamW") else OTHERS for row in rows]
    heights = range(len(rows))
    axis.barh(heights, times, color=colours, height=0.6, xerr=list(zip(*spread)), error_kw={"lw": 0.8})
    floors = [float(row["floor_ms"]) for row in rows]
    axis.scatter(floors, heights, marker="|", s=260, color=FLOOR, label="floor", zorder=3)
    axis.set_yticks(heights, [f"{row['variant']} ({row['launch']})" for row in rows])
    for height, time in zip(heights, times):
        axis.annotate(f"{time:.3g}", (time, height), (4, 7), textcoords="offset points", fontsize=8)
    axis.set_xlabel("ms for one optimizer step, median and p20 to p80")
    axis.legend(loc="upper right", frameon=False)
    axis.margins(x=0.1)


def draw_overhead(rows: Rows, axis: Axes) -> None:
    """Draw the time that each optimizer adds to AdamW's training step, over the tokens of a step."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if row["variant"] != "AdamW":
            of = f"{row['variant']}, rank {row['rank']}" if row["variant"] == "GSRAdamW" else row["variant"]
            lines.setdefault(of, []).append((int(row["tokens"]), 100 * (float(row["ratio"]) - 1)))
    for name, points in lines.items():
        axis.plot(*zip(*sorted(points)), marker="o", label=name)
    tokens = sorted({int(row["tokens"]) for row in rows})
    axis.set_xscale("log", base=2)
    axis.set_xticks(tokens, [f"{n:,}" for n in tokens])
    axis.axhline(0, color=FLOOR, lw=0.8)
    axis.set_xlabel("tokens of a step")
    axis.set_ylabel("% more time than with AdamW")
    axis.legend(frameon=False)


def draw_roofline(rows: Rows, axis: Axes) -> None:
    """Draw the rate of each variant, over its FLOP for each byte, below the rates of the device."""
    rates = {row["variant"]: float(row["rate"]) for row in rows if row["case"] == "ceilings"}
    measured = [row for row in rows if row["case"] != "ceilings" and float(row["flop"] or 0) and row["p50_ms"]]
    points = [
        (float(row["flop"]) / float(row["bytes"]), float(row["flop"]) / float(row["p50_ms"]) * 1e-9) for row in measured
    ]
    ends = [min(x for x, _ in points) / 2, max(x for x, _ in points) * 2]
    for name, most in rates.items():
        if name != "memory":
            corner = most / rates["memory"]
            xs = sorted({*ends, min(max(corner, ends[0]), ends[1])})
            axis.plot(xs, [min(most, rates["memory"] * x) for x in xs], lw=1, color=FLOOR)
            axis.annotate(f"{name} {most:.3g} TFLOP/s", (ends[1], most), ha="right", va="bottom", fontsize=8)
    for (x, y), row in zip(points, measured):
        axis.scatter(x, y, color=OURS if row["variant"].startswith("GSR") else OTHERS, zorder=3)
        axis.annotate(row["variant"], (x, y), (5, -3), textcoords="offset points", fontsize=7)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("FLOP for each byte that must move")
    axis.set_ylabel("TFLOP/s")


# of each picture the cases that it is drawn from, and who draws it
PICTURES: dict[str, tuple[tuple[str, ...], Callable[[Rows, Axes], None]]] = {
    "step": (("optimizer_step",), draw_step),
    "overhead": (("training_step",), draw_overhead),
    "roofline": (("ceilings", "transform", "optimizer_step"), draw_roofline),
}


def draw(rows: Rows, folder: Path) -> list[Path]:
    """Draw the pictures that one device's rows allow, and return the files.

    Of several settings the first is drawn, of a roofline all that multiply.
    """
    written = []
    for name, (cases, by) in PICTURES.items():
        chosen = [row for row in rows if row["case"] in cases and not row["failed"]]
        # every case that a picture needs must have been run
        if {row["case"] for row in chosen} != set(cases):
            continue
        first = next(row for row in chosen if row["model"])
        same = ("model", "dtype") if name == "overhead" else ("model", "dtype", "rank")
        chosen = [row for row in chosen if not row["model"] or all(row[label] == first[label] for label in same)]
        figure = Figure(figsize=(8, 4.2), layout="constrained")
        axis = figure.subplots()
        by(chosen, axis)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_title(_conditions(first, with_rank="rank" in same), fontsize=9, loc="left")
        for suffix in ("svg", "png"):
            written.append(folder / f"{name}.{suffix}")
            # the same rows are the same bytes
            with matplotlib.rc_context({"svg.hashsalt": name}):
                figure.savefig(written[-1], dpi=150, metadata={"Date": None} if suffix == "svg" else {})
    return written


def _conditions(row: dict[str, str], with_rank: bool) -> str:
    rank = f", rank {row['rank']}" if with_rank else ""
    where = f"{row['device']}, torch {row['torch']}, {row['date']}, commit {row['commit']}"
    return f"{row['model']}, {row['shape']}, gradients x bases {row['dtype']}{rank}\n{where}"


def write() -> None:
    """Draw the pictures of the last GPU's rows."""
    rows = read()
    device = next((row["device"] for row in reversed(rows) if row["driver"]), "")
    written = draw([row for row in rows if row["device"] == device], IMAGES)
    print(*written or [f"no case that a picture needs was measured on {device or 'a GPU'}"], sep="\n")
