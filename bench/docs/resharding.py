"""A run saved by 4 processes and resumed by 2, drawn beside an unbroken one.

Runs examples/fsdp2.py under torchrun where bench/results/resharding.csv is not there; the picture goes to docs/images.
"""

from __future__ import annotations

import csv
import re
import subprocess
import sys
import tempfile

from matplotlib.figure import Figure

from bench.docs.figures import OTHERS, OURS, save
from bench.docs.pages import IMAGES, ROOT, grouped
from bench.results import RESULTS

EXAMPLE = ROOT / "examples" / "fsdp2.py"
LOSSES = RESULTS / "resharding.csv"
STOP, END = 50, 100
WHOLE, SAVED, RESUMED = "4 processes", "saved by 4", "resumed by 2"


def losses(run: str, processes: int, folder: str, steps: int) -> list[tuple[str, str, str]]:
    """Return the loss at each step that a run of so many processes took, from where the folder's last checkpoint is."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += [str(EXAMPLE), "--folder", folder, "--steps", str(steps)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [(run, *found) for found in re.findall(r"^step (\d+) loss (\S+)$", printed, re.M)]


def measure() -> None:
    """Take both runs and keep their losses."""
    with tempfile.TemporaryDirectory() as through, tempfile.TemporaryDirectory() as stopped:
        rows = losses(WHOLE, 4, through, END) + losses(SAVED, 4, stopped, STOP) + losses(RESUMED, 2, stopped, END)
    with LOSSES.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("run", "step", "loss"), *rows])


def write() -> None:
    """Draw the losses of both runs, measured first where they are not there."""
    if not LOSSES.exists():
        measure()
    with LOSSES.open(newline="") as file:
        rows = grouped(csv.DictReader(file), "run")
    runs = {run: {int(row["step"]): float(row["loss"]) for row in of} for (run,), of in rows.items()}
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axis = figure.subplots()
    for run, label, how in (
        (WHOLE, "4 processes throughout", {"color": OTHERS, "lw": 5}),
        (SAVED, f"4 processes, saved after {STOP} steps", {"color": "black", "lw": 1.2}),
        (RESUMED, "resumed on 2 processes", {"color": OURS, "lw": 1.2, "ls": "--"}),
    ):
        axis.plot(runs[run].keys(), runs[run].values(), label=label, **how)
    far = max(abs(loss / runs[WHOLE][step] - 1) for step, loss in (runs[SAVED] | runs[RESUMED]).items())
    axis.set_title(f"A small Llama under fully_shard and GSR: the losses differ by at most {far:.0e}", fontsize=10)
    axis.set(xlabel="step", ylabel="loss", yscale="log")
    axis.legend(frameon=False)
    save(figure, IMAGES / "resharding.svg", dpi=120)
