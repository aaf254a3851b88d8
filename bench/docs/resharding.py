"""A run saved by 4 processes and resumed by 2, drawn beside an unbroken one.

Runs examples/fsdp2.py under torchrun; the losses go to bench/results/resharding.csv, the picture to docs/images.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile

import matplotlib

from bench.docs.figures import OTHERS, OURS
from bench.docs.pages import IMAGES, ROOT
from bench.results import RESULTS

EXAMPLE = ROOT / "examples" / "fsdp2.py"
LOSSES = RESULTS / "resharding.csv"
STOP, END = 50, 100


def losses(processes: int, folder: str, steps: int) -> dict[int, float]:
    """Return the loss at each step that a run of so many processes took, from where the folder's last checkpoint is."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += [str(EXAMPLE), "--folder", folder, "--steps", str(steps)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {int(step): float(loss) for step, loss in re.findall(r"^step (\d+) loss (\S+)$", printed, re.M)}


def measure() -> dict[str, dict[int, float]]:
    """Return the losses of both runs, by step."""
    with tempfile.TemporaryDirectory() as through, tempfile.TemporaryDirectory() as stopped:
        return {
            "4 processes": losses(4, through, END),
            "saved by 4": losses(4, stopped, STOP),
            "resumed by 2": losses(2, stopped, END),
        }


def draw(runs: dict[str, dict[int, float]]) -> None:
    """Draw the losses of both runs."""
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axis = figure.subplots()
    whole, saved, resumed = runs.values()
    axis.plot(whole.keys(), whole.values(), color=OTHERS, lw=5, label="4 processes throughout")
    axis.plot(saved.keys(), saved.values(), color="black", lw=1.2, label=f"4 processes, saved after {STOP} steps")
    axis.plot(resumed.keys(), resumed.values(), color=OURS, lw=1.2, ls="--", label="resumed on 2 processes")
    far = max(abs(loss / whole[step] - 1) for step, loss in (saved | resumed).items())
    axis.set_title(f"A small Llama under fully_shard and GSR: the losses differ by at most {far:.0e}", fontsize=10)
    axis.set_xlabel("step")
    axis.set_ylabel("loss")
    axis.set_yscale("log")
    axis.legend(frameon=False)
    figure.savefig(IMAGES / "resharding.svg", dpi=120)


def write() -> None:
    """Measure both runs, keep their losses and draw them."""
    runs = measure()
    lines = ["run,step,loss", *(f"{run},{step},{loss}" for run, of in runs.items() for step, loss in of.items())]
    LOSSES.write_text("\n".join(lines) + "\n")
    draw(runs)
