"""``python -m gsr_kernels continual analyse RUN``: pictures, each with its CSV, of what tasks did to the weights."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial

from tqdm import tqdm

from gsr_kernels.cli import path_of
from gsr_kernels.cli.continual import prepared
from gsr_kernels.continual.ranks import joined
from gsr_kernels.messages import need


def ranks_of(text: str) -> list[int]:
    """Parse numbers of directions with commas; "none" for no sweep."""
    numbers = [] if text == "none" else text.split(",")
    if not all(number.strip().isdecimal() for number in numbers):
        raise argparse.ArgumentTypeError(f"ranks must be at least 0, with commas between, or none, got {text!r}")
    return sorted(set(map(int, numbers)))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    add = parser.add_argument
    add("run_folder", type=path_of, metavar="RUN", help="a folder that continual --keep-models --out wrote")
    add("--method", help="of the run (default: all)")
    add("--seed", type=int, help="of the run (default: the first)")
    add("--weights", default="", metavar="REGEX", help="found in the names of the weights to look at (default: all)")
    add("--ranks", type=ranks_of, metavar="K,K", help="of the sweep, or none (default: 0, 1, 2, 4, … and all)")
    add("--out", type=path_of, metavar="DIR", help="for the pictures (default: RUN/analysis)")


def run(args: argparse.Namespace) -> None:
    """Draw all pictures; ValueError where the models after the tasks were not kept."""
    need("continual analyse", "matplotlib", "plot")
    from gsr_kernels.continual import analyse
    from gsr_kernels.continual.models import quiet

    if not (args.run_folder / "config.json").is_file():
        raise ValueError(f"RUN {args.run_folder} holds no run")
    with joined(), quiet(), tqdm(unit="picture", leave=False, disable=None) as bar:
        _, _, job = prepared(["continual", str(args.run_folder), "--resume"])
        sequences = {sequence.seed: sequence for sequence in job.sequences(bar)}
        seed = job.settings.numbers[0] if args.seed is None else args.seed
        chosen = [one for one in job.chosen.values() if one.chained and args.method in (None, one.name, one.title)]
        if seed not in sequences or not chosen:
            names = ", ".join(one.name for one in job.chosen.values() if one.chained)
            seeds = ", ".join(map(str, sequences))
            raise ValueError(f"--method, --seed: the run has the seeds {seeds} and the methods {names}")
        for one in chosen:
            folder = (args.out or args.run_folder / "analysis") / f"seed-{seed}" / one.name
            folder.mkdir(parents=True, exist_ok=True)
            start, updates, last = analyse.updates_of(sequences[seed].models(one), args.weights)
            pictures = [analyse.shifts, analyse.bottom_share, analyse.spectra]
            if len(updates) > 1:
                pictures += [analyse.sign_conflicts, analyse.angles]
            for draw in pictures:
                draw(updates, folder / f"{draw.__name__}.png")
            most = max(min(W.shape) for W in start.values())
            ranks = [0, *(2**n for n in range(most.bit_length()) if 2**n < most), most]
            if args.ranks is not None:
                ranks = args.ranks
            if ranks:
                scores = partial(sequences[seed].scores, last, folder / "answers")
                analyse.rank_sweep(last, start, partial(_tested, scores), ranks, folder / "rank_sweep.png")
            print(f"{folder}: {', '.join(sorted(path.stem for path in folder.glob('*.png')))}")


def _tested(scores: Callable[[], Mapping[str, Mapping[str, float]]]) -> Mapping[str, float]:
    return scores()["test"]
