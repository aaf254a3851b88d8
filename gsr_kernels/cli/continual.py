"""``python -m gsr_kernels continual``: learn tasks one after another, and see what each method forgets."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from gsr_kernels.cli import rank_of
from gsr_kernels.continual.folder import begin, claimed, write
from gsr_kernels.continual.methods import BOUNDS, METHODS, TITLES, MethodSettings
from gsr_kernels.continual.model import ModelConfig
from gsr_kernels.continual.recipe import expand
from gsr_kernels.continual.report import report
from gsr_kernels.continual.results import Results
from gsr_kernels.continual.runner import ranks
from gsr_kernels.continual.runner import settings as runner_settings
from gsr_kernels.continual.settings import Settings
from gsr_kernels.messages import install
from gsr_kernels.options import RANK

# the flags that mean nothing without --model, and with it
WITH_MODEL = ("order", "partial", "known", "metric", "resume", *(each.name for each in runner_settings.FLAGS))
WITHOUT_MODEL = ("pretrain_steps", "width", "layers")


class Job(Protocol):
    """What the command carries out: the built-in demo, or the run of a model of the reader's own."""

    notes: Sequence[str]

    @property
    def config(self) -> dict[str, Any]:
        """All that decides the numbers, for config.json."""

    def run(self, keep: Callable[[Results], object]) -> Results:
        """Trains and scores; ``keep`` is called with what is measured so far."""

    def conditions(self, results: Results) -> str:
        """What was learned, and how."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    demo, run = Settings(), runner_settings.RunSettings(model="")
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="for the results; new or empty")
    add(
        "--data",
        type=Path,
        metavar="DIR",
        help='tasks of your own: one JSON-lines file a task, each line {"prompt": text, "completion": text}, in the '
        "order of the file names (default: five tasks from the Python library); with --model also NAME/train.jsonl and "
        "NAME/test.jsonl, CL_Benchmark's layout and TRACE's",
    )
    add(
        "--method",
        action="append",
        metavar="NAME",
        help=f"one of {', '.join(TITLES)}; several with commas, or again (default: {','.join(demo.methods)})",
    )
    add("--bounds", action=argparse.BooleanOptionalAction, help="also each task alone and all at once: perft and mtl")
    add("--rho", type=float, help=f"of GSR, in [0, 1] (default: {demo.method.rho})")
    add("--rank", type=rank_of, help=f"of a weight: {RANK} (default: all)")
    add("--adapter-lr", type=float, help=f"of AdamW on adapters (default: {demo.method.adapter_lr})")
    add("--adapter-rank", type=int, help=f"of adapters (default: {demo.method.adapter_rank})")
    add("--seeds", type=int, help=f"repetitions (default: {demo.seeds}; {run.seeds} with --model)")
    add("--steps", type=int, help=f"for each task (default: {demo.steps}; with --model that of --epochs)")
    add("--lr", type=float, help=f"of AdamW, for every method (default: {demo.lr}; {run.lr} with --model)")

    built_in = parser.add_argument_group("the built-in model, without --model")
    add = built_in.add_argument
    add("--pretrain-steps", type=int, help=f"before all tasks (default: {demo.pretrain_steps})")
    add("--width", type=int, help=f"of the model (default: {ModelConfig().width})")
    add("--layers", type=int, help=f"of the model (default: {ModelConfig().layers})")

    hub = parser.add_argument_group("a model of your own, by transformers")
    add = hub.add_argument
    add("--model", metavar="DIR_OR_NAME", help="a folder that save_pretrained wrote, or a name on a hub")
    add("--recipe", metavar="FILE_OR_NAME", help="flags in a YAML file; what is given by hand wins")
    add("--resume", action="store_true", help="go on with what --out holds, to the same numbers")
    add("--order", metavar="NAMES", help="tasks with commas, or order1-3, long1-3 (CL_Benchmark), trace (TRACE)")
    partial = "leave out what a published --order has and the data lacks"
    add("--partial", action=argparse.BooleanOptionalAction, help=partial)
    add("--known", action="append", type=Path, metavar="FILE", help="known before: .jsonl rows or a .txt; repeatable")
    add("--metric", action="append", metavar="[TASK=]NAME", help="what a task is scored by; repeatable")
    runner_settings.add_arguments(hub)


def run(args: argparse.Namespace) -> None:
    """Runs the experiment, writes the folder as it goes and prints the report.

    Raises:
        ValueError, OSError: bad input, found before any work.
        FloatingPointError: training diverges.
    """
    with ranks.joined():
        _run(args)


def _run(given: argparse.Namespace) -> None:
    arguments = given.arguments
    args, job = ranks.together(lambda: _prepared(given))
    config = {"arguments": list(arguments), **job.config}
    before = ranks.led(lambda: _open(args, job))
    if before:
        # where the run began stays written; where it went on is added
        again = {key: config[key] for key in ("arguments", "versions", "machine", "threads")}
        config = {**before, "resumed": [*before.get("resumed", ()), again]}

    def keep(done: Results) -> None:
        if ranks.first():
            write(args.out, config, done, report(done, job.conditions(done), *job.notes))

    with contextlib.ExitStack() as stack:

        def claim() -> None:
            stack.enter_context(claimed(args.out))
            begin(args.out, config)

        ranks.led(claim)
        results = job.run(keep)
    if not ranks.first():
        return
    print(f"\n{report(results, job.conditions(results), *job.notes)}")
    _draw(args.out, results)
    print(f"{results.seconds:.0f} s; see {args.out}: {', '.join(sorted(path.name for path in args.out.glob('[!.]*')))}")


def _prepared(args: argparse.Namespace) -> tuple[argparse.Namespace, Job]:
    """All flags, a recipe's too, and what they ask for."""
    if args.recipe is not None:
        parser = argparse.ArgumentParser(prog=f"--recipe {args.recipe}", allow_abbrev=False)
        add_arguments(parser)
        args = parser.parse_args(expand(args.arguments[1:]))
    names = _names(args.method) or Settings().methods
    if args.bounds:
        names += tuple(bound for bound in BOUNDS if bound not in names)
    if ranks.world() > 1 and not args.model:
        raise ValueError("the built-in model is for one process: start it without torchrun, or give --model")
    return args, _job(args, names)


def _job(args: argparse.Namespace, names: tuple[str, ...]) -> Job:
    given = {name for name, value in vars(args).items() if value is not None and value is not False}
    strange = [name for name in (WITHOUT_MODEL if args.model else WITH_MODEL) if name in given]
    if strange:
        flags = ", ".join("--" + name.replace("_", "-") for name in strange)
        raise ValueError(f"{flags}: only with{'out' if args.model else ''} --model")
    # every such error begins with the name of a field, which is that of its flag, or is complete
    try:
        method = _method_settings(args, names)
        if args.model:
            from gsr_kernels.continual.runner.run import Run

            return Run(args, names, method)
        from gsr_kernels.continual.demo import Demo

        return Demo(args, names, method)
    except ValueError as error:
        field, rest = str(error).partition(" ")[::2]
        if field in vars(args):
            raise ValueError(f"--{field.replace('_', '-')} {rest}") from error
        raise


def _open(args: argparse.Namespace, job: Job) -> dict[str, Any]:
    """Makes the folder, or finds in it the run to go on with, whose configuration it returns."""
    if args.resume:
        from gsr_kernels.continual.runner.run import Run

        file = args.out / "config.json"
        if not file.is_file():
            raise FileNotFoundError(f"--resume: --out {args.out} holds no run (no config.json): leave --resume out")
        before = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(job, Run):
            job.check_same(before)
        return before
    if args.out.exists() and not (args.out.is_dir() and not any(args.out.iterdir())):
        raise FileExistsError(f"--out {args.out} exists and is no empty folder: give a new one")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"--out {args.out} cannot be made ({error.strerror}): give a folder that can") from error
    return {}


def _names(given: list[str] | None) -> tuple[str, ...]:
    names = tuple(name.strip() for names in given or () for name in names.split(","))
    if not all(names):
        raise ValueError(f"--method {','.join(names)} holds an empty name: one comma stands between two names")
    return names


def _method_settings(args: argparse.Namespace, names: tuple[str, ...]) -> MethodSettings:
    flags = [field.name for field in fields(MethodSettings)]
    given = {name: getattr(args, name) for name in flags if getattr(args, name) is not None}
    settings = MethodSettings(**given)
    for field in given:
        readers = [name for name, method in METHODS.items() if field in method.reads]
        if not set(readers).intersection(names):
            raise ValueError(f"{field} is read by {', '.join(readers)}, none of which is in --method {','.join(names)}")
    return settings


def _draw(folder: Path, results: Results) -> None:
    if not results.methods():
        print("no pictures of bounds alone: they learn no task after another", file=sys.stderr)
        return
    if find_spec("matplotlib") is None:
        print(f"no pictures without matplotlib: {install('plot')}", file=sys.stderr)
        return
    from gsr_kernels.continual.plots import draw_forgetting, draw_spectra

    draw_forgetting(results, folder / "forgetting.png")
    draw_spectra(results, folder / "spectra.png")
