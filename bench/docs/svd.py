"""The tables and the figure of decompositions in docs/performance.md."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from bench.decompositions import DRIVEN
from bench.docs.pages import DOCS, IMAGES, fill
from bench.results import read

PAGE = DOCS / "performance.md"
FIGURE = IMAGES / "svd_drivers.png"

Rows = Sequence[dict[str, str]]

# what begins on a CPU, and the share of torch's time that it may take
FIRST, BOUND = f"{DRIVEN}gesdd", 1.2


def accuracy(rows: Rows) -> str:
    """Return, for each device, the errors of σ by spectrum and condition, and the worst of what else has a target."""
    exact = [row for row in rows if row["case"] == "svd_accuracy" and row["sigma_error"]]
    return "\n\n".join(_accuracy(device, of) for device, of in _by_device(exact))


def _accuracy(device: str, exact: Rows) -> str:
    conditions = list(dict.fromkeys(row["spectrum"].split()[1] for row in exact))
    drivers = list(dict.fromkeys(row["variant"].removeprefix(DRIVEN) for row in exact))
    lines = [
        f"| W | spectrum | {' | '.join(f'condition {condition}' for condition in conditions)} |",
        f"|---|---|{'---|' * len(conditions)}",
    ]
    shapes, kinds = dict.fromkeys(row["shape"] for row in exact), dict.fromkeys(_kind(row) for row in exact)
    there = {(row["shape"], _kind(row)) for row in exact}
    for shape, kind in (pair for pair in product(shapes, kinds) if pair in there):
        cells = []
        for condition in conditions:
            found = [row for row in exact if (row["shape"], row["spectrum"]) == (shape, f"{kind} {condition}")]
            errors = {row["variant"].removeprefix(DRIVEN): _short(row["sigma_error"]) for row in found}
            of_torch = [_short(row["sigma_error_of_torch"]) for row in found[:1]]
            cells.append(" · ".join([*(errors.get(driver, "–") for driver in drivers), *of_torch]) if found else "")
        lines.append(f"| {_sides(shape)} | {kind} | {' | '.join(cells)} |")
    missed = sum("missed" in row["verdict"] for row in exact)
    worst = {name: max(float(row[name]) for row in exact) for name in ("orthogonality", "residual")}
    return "\n".join(
        [
            f"Largest relative error of σ against float64 on {device}, by {' · '.join(drivers)} · `torch.linalg.svd`:",
            "",
            *lines,
            "",
            f"Of the {len(exact)} rows {missed or 'none'} missed a target. The largest entry of UᵀU − I and VᵀV − I",
            f"was {worst['orthogonality']:.1e} (target 1e-5), the largest residual {worst['residual']:.1e} (5e-6).",
            _where(exact),
        ]
    )


def drivers(rows: Rows) -> str:
    """Return the time of each driver beside torch's."""
    timed = [row for row in rows if row["case"] in ("svd_cpu", "svd_gpu") and row["ratio_to"] == "torch.linalg.svd"]
    timed = [row for row in timed if row["variant"].startswith(DRIVEN) and not row["model"]]
    names = list(dict.fromkeys(row["variant"].removeprefix(DRIVEN) for row in timed))
    lines = [f"| W | {' | '.join(names)} | device |", f"|---|{'--:|' * len(names)}---|"]
    for device, shape in dict.fromkeys((row["device"], row["shape"]) for row in timed):
        found = {
            row["variant"].removeprefix(DRIVEN): row["ratio"] for row in timed
            if (row["device"], row["shape"]) == (device, shape)
        }  # fmt: skip
        cells = [f"{float(found[name]):.2f} ×" if name in found else "" for name in names]
        lines.append(f"| {_sides(shape)} | {' | '.join(cells)} | {device} |")
    first = [row for row in timed if row["case"] == "svd_cpu" and row["variant"] == FIRST]
    over = [row for row in first if float(row["ratio"]) > BOUND]
    said = ", ".join(f"{_sides(row['shape'])} ({row['ratio']} ×)" for row in over) or "none of these"
    missed = f"The target for a CPU's first driver, gesdd, of at most {BOUND} × is missed by: {said}."
    table = ["Time over that of `torch.linalg.svd`, measured in turns:", "", *lines, "", missed, _where(timed)]
    return "\n".join(table)


def arrangements(rows: Rows) -> str:
    """Return, for each device, the time of several equal matrices one by one and side by side, and of whole models."""
    several = [
        row for row in rows if row["case"] in ("svd_cpu", "svd_gpu") and row["ratio_to"].endswith(", one by one")
    ]
    parts = [_arrangements(device, of) for device, of in _by_device(several)]
    models = [row for row in rows if row["case"] == "svd_gpu" and row["model"] and row["verdict"]]
    parts += [
        f"- {row['model']}, {row['variant']}, rank {row['rank']}: {row['verdict']}. {_where([row])}" for row in models
    ]
    if not any(row["case"] == "svd_gpu" for row in rows):
        parts.append("On a GPU nothing of this has been measured yet.")
    return "\n\n".join(parts)


def _arrangements(device: str, of: Rows) -> str:
    ways = list(dict.fromkeys(row["variant"].split(", ", 1)[1] for row in of))
    lines = [f"| matrices | {' | '.join(ways)} |", f"|---|{'--:|' * len(ways)}"]
    for shape, rank, against in dict.fromkeys((row["shape"], row["rank"], row["ratio_to"]) for row in of):
        same = [row for row in of if (row["shape"], row["rank"], row["ratio_to"]) == (shape, rank, against)]
        found = {row["variant"].split(", ", 1)[1]: row for row in same}
        cells = [f"{float(found[way]['p50_ms']):.3g} ms" if way in found else "" for way in ways]
        sketch = f", sketch of rank {rank}" if against.startswith("randomized") else ""
        lines.append(f"| {_sides(shape)}{sketch} | {' | '.join(cells)} |")
    return "\n".join([f"Time of all on {device}:", "", *lines, "", _where(of)])


def randomized(rows: Rows) -> str:
    """Return, for each device, errors over the best of the rank, energy and time, beside the peer's."""
    found = [row for row in rows if row["case"] == "svd_accuracy" and row["spectral_error"]]
    times = [row for row in rows if row["case"] in ("svd_cpu", "svd_gpu") and row["variant"] == "randomized_svd"]
    return "\n\n".join(
        _randomized(device, of, [row for row in times if row["device"] == device]) for device, of in _by_device(found)
    )


def _randomized(device: str, found: Rows, timed: Rows) -> str:
    peer = next(row["variant"] for row in found if row["variant"] != "randomized_svd")
    times = {(row["shape"], row["rank"]): row for row in timed if row["ratio_to"] == peer}
    columns = ["W, k", "p, q", "error / best: flat · decaying", peer, "captured energy: flat · decaying"]
    lines = [f"| {' | '.join(columns)} | time / {peer} |", "|---|---|---|---|---|--:|"]
    for shape, rank in dict.fromkeys((row["shape"], row["rank"]) for row in found):
        of = [row for row in found if (row["shape"], row["rank"]) == (shape, rank)]
        ours = [row for row in of if row["variant"] == "randomized_svd"]
        theirs = [row for row in of if row["variant"] != "randomized_svd"]
        settings = re.findall(r"= (\d+)", ours[0]["spectrum"])
        cells = [
            " · ".join(f"{float(row[name]):.3f}" for row in rows)
            for name, rows in (("spectral_error", ours), ("spectral_error", theirs), ("energy", ours))
        ]
        time = times.get((shape, rank))
        cells.append(f"{float(time['ratio']):.2f}" if time else "")
        lines.append(f"| {_sides(shape)}, {rank} | {', '.join(settings)} | {' | '.join(cells)} |")
    missed = sum("missed" in row["verdict"] for row in found)
    return "\n".join(
        [f"On {device}:", "", *lines, "", f"Of these rows {missed or 'none'} missed a target. {_where(found)}"]
    )


def draw(rows: Rows, path: Path) -> None:
    """Draw time against n for each driver, a panel a device."""
    import matplotlib.pyplot as plt

    square = [row for row in rows if row["case"] in ("svd_cpu", "svd_gpu") and re.fullmatch(r"(\d+)x\1", row["shape"])]
    square = [row for row in square if row["ratio_to"] == "torch.linalg.svd"]
    devices = list(dict.fromkeys(row["device"] for row in square))
    figure, panels = plt.subplots(
        1, len(devices), figsize=(1 + 4.5 * len(devices), 4), layout="constrained", squeeze=False
    )
    for device, axes in zip(devices, panels[0]):
        for variant in dict.fromkeys(row["variant"] for row in square if row["device"] == device):
            of = [row for row in square if (row["device"], row["variant"]) == (device, variant)]
            points = sorted((int(row["shape"].split("x")[0]), float(row["p50_ms"])) for row in of)
            axes.loglog(*zip(*points), "o-", base=2, markersize=3, label=variant.removeprefix(DRIVEN))
        axes.set_yscale("log", base=10)
        axes.set(xlabel="n", ylabel="ms, n × n", title=device)
        axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def blocks(rows: Rows) -> dict[str, str]:
    """Return the tables by their marks."""
    tables = {"exact": accuracy, "drivers": drivers, "arrangements": arrangements, "randomized": randomized}
    return {f"svd {name}": table(rows) for name, table in tables.items()}


def write() -> None:
    """Write the tables into the page and draw the figure."""
    rows = read()
    draw(rows, FIGURE)
    fill(PAGE, blocks(rows))


def _by_device(rows: Rows) -> list[tuple[str, Rows]]:
    devices = dict.fromkeys(row["device"] for row in rows)
    return [(device, [row for row in rows if row["device"] == device]) for device in devices]


def _kind(row: dict[str, str]) -> str:
    return row["spectrum"].split()[0]


def _short(error: str) -> str:
    return f"{float(error):.1e}".replace("e-0", "e-")


def _sides(shape: str) -> str:
    return shape.replace("x", "×")


def _where(rows: Rows) -> str:
    said = []
    for row in rows:
        threads = ", one thread" if row["threads"] == "1" else ""
        said.append(f"{row['device']}{threads}, torch {row['torch']}, {row['date']}, commit {row['commit']}")
    return f"({'; '.join(dict.fromkeys(said))})"
