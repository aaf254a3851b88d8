"""``python -m gsr_kernels continual``: learn tasks one after another, and see what each method forgets."""

from __future__ import annotations

import argparse
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from gsr_kernels.continual.experiment import Results, describe_methods, run_experiment
from gsr_kernels.continual.folder import configuration, write
from gsr_kernels.continual.methods import BOUNDS, METHODS, RANK, TITLES, MethodSettings
from gsr_kernels.continual.model import ModelConfig
from gsr_kernels.continual.report import report
from gsr_kernels.continual.settings import Settings
from gsr_kernels.continual.tasks import library_pools, read_pools


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    default = Settings()
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="for the results; new or empty")
    add(
        "--data",
        type=Path,
        metavar="DIR",
        help='tasks of your own: one JSON-lines file a task, each line {"prompt": text, "completion": text}, in the '
        "order of the file names (default: five tasks from the Python library)",
    )
    add(
        "--method",
        action="append",
        metavar="NAME",
        help=f"one of {', '.join(TITLES)}; several with commas, or again (default: {','.join(default.methods)})",
    )
    add("--bounds", action="store_true", help="also each task alone and all at once: perft and mtl")
    add("--rho", type=float, help=f"of GSR, in [0, 1] (default: {default.method.rho})")
    add("--rank", type=_rank, help=f"of a weight: {RANK} (default: all)")
    add("--seeds", type=int, default=default.seeds, help="repetitions (default: %(default)s)")
    add("--steps", type=int, default=default.steps, help="for each task (default: %(default)s)")
    add("--lr", type=float, default=default.lr, help="of AdamW, for every method (default: %(default)s)")
    add("--pretrain-steps", type=int, default=default.pretrain_steps, help="before all tasks (default: %(default)s)")
    add("--width", type=int, default=default.model.width, help="of the model (default: %(default)s)")
    add("--layers", type=int, default=default.model.layers, help="of the model (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Runs the experiment, writes the folder after every seed and prints the report.

    Raises:
        ValueError, OSError: bad input, found before any work.
        FloatingPointError: training diverges.
    """
    names = _names(args.method) or Settings().methods
    if args.bounds:
        names += tuple(bound for bound in BOUNDS if bound not in names)
    # every such error begins with the name of a field, which is that of its flag
    try:
        settings = Settings(
            methods=names,
            method=_method_settings(args, names),
            seeds=args.seeds,
            steps=args.steps,
            lr=args.lr,
            pretrain_steps=args.pretrain_steps,
            model=ModelConfig(width=args.width, layers=args.layers),
        )
        described = describe_methods(settings)
    except ValueError as error:
        raise ValueError("--" + str(error).replace("pretrain_", "pretrain-", 1)) from error
    pools = library_pools() if args.data is None else read_pools(args.data)
    if args.out.exists() and not (args.out.is_dir() and not any(args.out.iterdir())):
        raise FileExistsError(f"--out {args.out} exists and is no empty folder: give a new one")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"--out {args.out} cannot be made ({error.strerror}): give a folder that can") from error

    config = configuration(settings, pools, described, args.arguments)
    results = run_experiment(
        settings, pools, keep=lambda done: write(args.out, config, done, report(settings, pools, done))
    )
    print(f"\n{report(settings, pools, results)}")
    _draw(args.out, results)
    print(f"{results.seconds:.0f} s; see {args.out}: {', '.join(sorted(file.name for file in args.out.iterdir()))}")


def _names(given: list[str] | None) -> tuple[str, ...]:
    names = tuple(name.strip() for names in given or () for name in names.split(","))
    if not all(names):
        raise ValueError(f"--method {','.join(names)} holds an empty name: one comma stands between two names")
    return names


def _method_settings(args: argparse.Namespace, names: tuple[str, ...]) -> MethodSettings:
    given = {field: getattr(args, field) for field in ("rho", "rank") if getattr(args, field) is not None}
    settings = MethodSettings(**given)
    for field in given:
        readers = [name for name, method in METHODS.items() if field in method.reads]
        if not set(readers).intersection(names):
            raise ValueError(f"{field} is read by {', '.join(readers)}, none of which is in --method {','.join(names)}")
    return settings


def _rank(text: str) -> int | float:
    for number in (int, float):
        with suppress(ValueError):
            return number(text)
    raise argparse.ArgumentTypeError(f"rank must be {RANK}, got {text!r}")


def _draw(folder: Path, results: Results) -> None:
    if not results.methods():
        print("no pictures of bounds alone: they learn no task after another", file=sys.stderr)
        return
    if find_spec("matplotlib") is None:
        print("no pictures without matplotlib: pip install 'gsr-kernels[plot]'", file=sys.stderr)
        return
    from gsr_kernels.continual.plots import draw_forgetting, draw_spectra

    draw_forgetting(results, folder / "forgetting.png")
    draw_spectra(results, folder / "spectra.png")
