"""The tables and the figure of decompositions in docs/performance.md."""

from __future__ import annotations

import re
from pathlib import Path

from matplotlib.figure import Figure

from bench.decompositions import DRIVEN
from bench.docs.figures import save
from bench.docs.pages import DOCS, IMAGES, Row, Rows, fill, grouped, measured, pivot, table
from bench.results import read

PAGE = DOCS / "performance.md"
FIGURE = IMAGES / "svd_drivers.png"
OURS = "randomized_svd"
# what begins on a CPU, and the share of torch's time that it may take
FIRST, BOUND = "gram", 1.1


def accuracy(rows: Rows) -> str:
    """Return, for each device, the errors of σ by spectrum and condition, and the worst of what else has a target."""
    exact = [row for row in rows if row["case"] == "svd_accuracy" and row["sigma_error"]]
    return "\n\n".join(_accuracy(device, of) for (device,), of in grouped(exact, "device").items())


def _accuracy(device: str, exact: Rows) -> str:
    drivers = list(dict.fromkeys(map(_driver, exact)))

    def errors(of: Rows) -> str:
        found = {_driver(row): _short(row["sigma_error"]) for row in of}
        return " · ".join([*(found.get(driver, "–") for driver in drivers), _short(of[0]["sigma_error_of_torch"])])

    def line(of: Rows) -> tuple[str, ...]:
        return _sides(of[0]), of[0]["spectrum"].split()[0]

    matrices = grouped(exact, "shape", "spectrum").values()
    conditions, lines = pivot(matrices, line, lambda of: of[0]["spectrum"].split()[1], errors)
    worst = {name: max(float(row[name]) for row in exact) for name in ("orthogonality", "residual")}
    said = [
        f"Largest relative error of σ against float64 on {device}, by {' · '.join(drivers)} · `torch.linalg.svd`:",
        "",
        table(["W", "spectrum", *(f"condition {condition}" for condition in conditions)], lines),
        "",
        f"Of the {len(exact)} rows {_missed(exact)} missed a target. The largest entry of UᵀU − I and VᵀV − I",
        f"was {worst['orthogonality']:.1e} (target 1e-5), the largest residual {worst['residual']:.1e} (5e-6).",
        f"({measured(exact)})",
    ]
    return "\n".join(said)


def drivers(rows: Rows) -> str:
    """Return the time of each driver beside torch's."""
    timed = [row for row in _timed(rows) if row["ratio_to"] == "torch.linalg.svd" and not row["model"]]
    timed = [row for row in timed if row["variant"].startswith(DRIVEN)]
    names, found = pivot(
        timed, lambda row: (_sides(row), row["device"]), _driver, lambda row: f"{float(row['ratio']):.2f} ×"
    )
    lines = [[shape, *cells, device] for shape, device, *cells in found]
    first = [row for row in timed if row["case"] == "svd_cpu" and _driver(row) == FIRST]
    over = [f"{_sides(row)} ({row['ratio']} ×)" for row in first if float(row["ratio"]) > BOUND]
    target = f"The target for a CPU's first driver, {FIRST}, of at most {BOUND} ×"
    said = f"{target} is missed by: {', '.join(over) or 'none of these'}." if first else f"{target} awaits its rows."
    return "\n".join(
        [
            "Time over that of `torch.linalg.svd`, measured in turns:",
            "",
            table(["W", *names, "device"], lines, f"l{'r' * len(names)}"),
            "",
            said,
            f"({measured(timed)})",
        ]
    )


def arrangements(rows: Rows) -> str:
    """Return, for each device, the time of several equal matrices one by one and side by side, and of whole models."""
    several = [row for row in _timed(rows) if row["ratio_to"].endswith(", one by one")]
    parts = []
    for (device,), of in grouped(several, "device").items():
        ways, lines = pivot(of, _arranged, _way, lambda row: f"{float(row['p50_ms']):.3g} ms")
        shown = table(["matrices", *ways], lines, f"l{'r' * len(ways)}")
        parts.append(f"Time of all on {device}:\n\n{shown}\n\n({measured(of)})")
    for row in rows:
        if row["case"] == "model_svd_gpu" and row["verdict"]:
            what = f"{row['model']}, {row['variant']}, rank {row['rank']}"
            parts.append(f"- {what}: {row['verdict']}. ({measured([row])})")
    if not any(row["case"] in ("svd_gpu", "model_svd_gpu") for row in rows):
        parts.append("On a GPU nothing of this has been measured yet.")
    return "\n\n".join(parts)


def randomized(rows: Rows) -> str:
    """Return, for each device, errors over the best of the rank, energy and time, beside the peer's."""
    found = [row for row in rows if row["case"] == "svd_accuracy" and row["spectral_error"]]
    timed = [row for row in _timed(rows) if row["variant"] == OURS]
    return "\n\n".join(
        _randomized(device, of, [row for row in timed if row["device"] == device])
        for (device,), of in grouped(found, "device").items()
    )


def _randomized(device: str, found: Rows, timed: Rows) -> str:
    peer = next(row["variant"] for row in found if row["variant"] != OURS)
    times = {(row["shape"], row["rank"]): _share(row) for row in timed if row["ratio_to"] == peer}
    lines = []
    for (shape, rank), of in grouped(found, "shape", "rank").items():
        ours = [row for row in of if row["variant"] == OURS]
        theirs = [row for row in of if row["variant"] != OURS]
        cells = [
            " · ".join(f"{float(row[name]):.3f}" for row in each)
            for name, each in (("spectral_error", ours), ("spectral_error", theirs), ("energy", ours))
        ]
        settings = ", ".join(re.findall(r"= (\d+)", ours[0]["spectrum"]))
        lines.append([f"{_sides(ours[0])}, {rank}", settings, *cells, times.get((shape, rank), "")])
    columns = ["W, k", "p, q", "error / best: flat · decaying", peer, "captured energy: flat · decaying"]
    shown = table([*columns, f"time, floor / {peer}"], lines, "lllllr")
    return f"On {device}:\n\n{shown}\n\nOf these rows {_missed(found)} missed a target. ({measured(found)})"


def _share(row: Row) -> str:
    """Return a time over the peer's, and what of it the products with W take at the rate of the same run."""
    floor = float(row["ratio"]) * float(row["floor_ms"] or "nan") / float(row["p50_ms"])
    return f"{float(row['ratio']):.2f}, {floor:.2f}".removesuffix(", nan")


def draw(rows: Rows, path: Path) -> None:
    """Draw time against n for each driver, a panel a device."""
    square = [row for row in _timed(rows) if re.fullmatch(r"(\d+)x\1", row["shape"])]
    devices = grouped([row for row in square if row["ratio_to"] == "torch.linalg.svd"], "device")
    figure = Figure(figsize=(1 + 4.5 * len(devices), 4), layout="constrained")
    panels = figure.subplots(1, len(devices), squeeze=False)[0]
    for ((device,), of), axes in zip(devices.items(), panels):
        for each in grouped(of, "variant").values():
            points = sorted((int(row["shape"].split("x")[0]), float(row["p50_ms"])) for row in each)
            axes.loglog(*zip(*points), "o-", base=2, markersize=3, label=_driver(each[0]))
        axes.set_yscale("log", base=10)
        axes.set(xlabel="n", ylabel="ms, n × n", title=device)
        axes.legend()
    save(figure, path, dpi=120)


def blocks(rows: Rows) -> dict[str, str]:
    """Return the tables by their marks."""
    tables = {"exact": accuracy, "drivers": drivers, "arrangements": arrangements, "randomized": randomized}
    return {f"svd {name}": table(rows) for name, table in tables.items()}


def write() -> None:
    """Write the tables into the page and draw the figure."""
    rows = read()
    draw(rows, FIGURE)
    fill(PAGE, blocks(rows))


def _timed(rows: Rows) -> list[Row]:
    return [row for row in rows if row["case"] in ("svd_cpu", "svd_gpu")]


def _missed(rows: Rows) -> int | str:
    return sum("missed" in row["verdict"] for row in rows) or "none"


def _driver(row: Row) -> str:
    return row["variant"].removeprefix(DRIVEN)


def _way(row: Row) -> str:
    return row["variant"].split(", ", 1)[1]


def _arranged(row: Row) -> tuple[str, ...]:
    sketch = f", sketch of rank {row['rank']}" if row["ratio_to"].startswith("randomized") else ""
    return (_sides(row) + sketch,)


def _short(error: str) -> str:
    return f"{float(error):.1e}".replace("e-0", "e-")


def _sides(row: Row) -> str:
    return row["shape"].replace("x", "×")
