"""``python -m gsr_kernels continual``: learn tasks one after another, and see what each method forgets."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from gsr_kernels.cli import path_of
from gsr_kernels.cli.groups import group_help
from gsr_kernels.continual import ranks, settings
from gsr_kernels.continual.checks import usual_methods
from gsr_kernels.continual.disk import explain_full_disk
from gsr_kernels.continual.folder import check_new, claimed, write, write_json
from gsr_kernels.continual.methods import BOUNDS, find_method
from gsr_kernels.continual.metrics import Results
from gsr_kernels.continual.recipe import expand
from gsr_kernels.continual.report import report
from gsr_kernels.continual.resume import BEGUN, CONFIG, all_flags, check_same, grow, read_run
from gsr_kernels.continual.run import Run
from gsr_kernels.continual.stop import StoppedError, listening
from gsr_kernels.messages import install


def known(text: str) -> NoReturn:
    """Refuse a flag that has another name now."""
    raise argparse.ArgumentTypeError("--known is called --retain now")


GROUPS = {
    "run": "RUN --out --resume --dry-run --recipe --seeds --keep-models --help-all",
    "model and tasks": "--model --data --order --retain --metric --validation --chat --max-tokens --new-tokens",
    "methods": "--method --set --sweep --bounds --baseline --rho --rank --adapter-lr --adapter-rank",
    "training": "--lr --epochs --steps --batch --micro-batch --bf16 --gradient-checkpointing --fsdp",
}
USAGE = """gsr-kernels continual [--model MODEL --data DIR] --out DIR [flags]
       gsr-kernels continual RUN --resume [flags]
       gsr-kernels continual methods | prepare RAW | compare RUN RUN | analyse RUN"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    add = parser.add_argument
    add("folder", nargs="?", type=path_of, metavar="RUN", help="--out, named first; goes on by --resume")
    add("--out", type=path_of, metavar="DIR", help="for the results; new or empty without --resume")
    add("--resume", action="store_true", help="start, or go on to the same numbers")
    add("--dry-run", action="store_true", help="print the plan alone; nothing is written")
    add("--recipe", metavar="NAME", help="flags in a YAML file; flags by hand win")
    add("--data", type=path_of, metavar="DIR", help="a file of rows a task; default: the demo's")
    add("--order", metavar="NAMES", help="of the tasks, with commas; order1, long1, trace")
    partial = "leave out what a published --order has and the data lacks"
    add("--partial", action=argparse.BooleanOptionalAction, help=partial)
    add("--retain", action="append", type=path_of, metavar="FILE", help="known before: rows or a text; repeatable")
    add("--known", type=known, help=argparse.SUPPRESS)
    add("--metric", action="append", metavar="NAME", help="of all tasks, or TASK=NAME; repeatable")
    add(
        "--method",
        action="append",
        metavar="NAMES",
        help="with commas, of continual methods; default: seqft,gsr, of a decoder lwf-own too",
    )
    add("--set", action="append", metavar="M.NAME=VALUE", help="a setting of method M; repeatable")
    add("--sweep", action="append", metavar="M.NAME=V,V", help="a run for each value; repeatable")
    add("--baseline", metavar="METHOD", help="to compare the others with (default: seqft)")
    add("--bounds", action=argparse.BooleanOptionalAction, help="also each task alone, and all at once")
    settings.add_arguments(parser)
    group_help(parser, USAGE, GROUPS)


def run(args: argparse.Namespace) -> None:
    """Run and report; ValueError and OSError for bad input, before any work, FloatingPointError if it diverges."""
    # wherever the disk gets full: the pictures come last
    with ranks.joined(), listening(), explain_full_disk(args.out or args.folder or Path()):
        try:
            _run(args.arguments)
        except StoppedError as stopped:
            if ranks.first():
                print(f"\n{_told(stopped.name, args.out or args.folder)}", file=sys.stderr)
            raise


def _told(name: str, folder: Path) -> str:
    if not (folder / CONFIG).is_file():
        return f"stopped by {name} before anything was begun"
    start = f"torchrun --nproc-per-node {ranks.world()}" if ranks.world() > 1 else "python"
    return f"stopped by {name}: go on with {start} -m gsr_kernels continual {shlex.quote(str(folder))} --resume"


def _run(arguments: Sequence[str]) -> None:
    args, before, job = ranks.run_on_all_ranks(lambda: prepared(arguments))
    typed = {"arguments": list(arguments), "directory": str(Path.cwd())}
    plan = ranks.on_rank0(job.plan)
    if args.dry_run:
        if ranks.first():
            print(plan)
        return
    # all ranks make it: in parts they ask each other
    asked = {**typed, **job.config}
    config = ranks.on_rank0(lambda: _open(args, before, asked))

    def keep(done: Results) -> None:
        if ranks.first():
            write(args.out, config, done, report(done, job.conditions(done), *job.notes))

    with contextlib.ExitStack() as stack:

        def claim() -> None:
            stack.enter_context(claimed(args.out))
            # a run that is cut off is known by it
            write_json(args.out / "config.json", config, indent=1)

        ranks.on_rank0(claim)
        if ranks.first():
            print(f"{plan}\n", flush=True)
        results = job.run(keep)
    if not ranks.first():
        if results.diverged:
            raise ranks.FailedElsewhere(2)
        return
    if results.matrices:
        _tell(args.out, job, results)
    if results.diverged:
        raise FloatingPointError("; ".join(f"{title} diverged: {why}" for title, why in results.diverged.items()))


def _tell(folder: Path, job: Run, results: Results) -> None:
    print(f"\n{report(results, job.conditions(results), *job.notes)}")
    _draw(folder, results)
    print(f"{results.seconds:.0f} s; see {folder}: {', '.join(sorted(path.name for path in folder.glob('[!.]*')))}")


def prepared(arguments: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any], Run]:
    """Return all flags, the configuration of the run that is gone on with, and the one that is asked for."""
    parser = argparse.ArgumentParser(prog="continual", allow_abbrev=False)
    add_arguments(parser)
    by_hand = parser.parse_args(expand(arguments[1:]))
    folders = {folder for folder in (by_hand.out, by_hand.folder) if folder is not None}
    if len(folders) != 1:
        parser.error("one folder is wanted, by --out" + f": got {' and '.join(map(str, folders))}" * bool(folders))
    [out] = folders
    before = read_run(out) if by_hand.resume else {}
    if by_hand.resume and not before and {text for text in arguments[1:] if text.startswith("-")} == {"--resume"}:
        raise FileNotFoundError(f"--resume: {out} holds no run to go on with: see its name, or give flags to start one")
    args = all_flags(parser.parse_args, arguments, before)
    args.out, args.resume = out, by_hand.resume
    methods = args.method or usual_methods(args.model, args.kind, args.fsdp)
    names = tuple(name.strip() for given in methods for name in given.split(","))
    if not all(names):
        raise ValueError(f"--method {','.join(names)} holds an empty name: one comma stands between two names")
    if args.bounds:
        kinds = {type(find_method(name.partition("+")[0])) for name in names}
        names += tuple(name for name, bound in BOUNDS.items() if type(bound) in kinds and name not in names)
    if before:
        names = grow(args, names, before["settings"])
    # every such error begins with the name of a field, which is that of its flag, or is complete
    try:
        return args, before, Run(args, names)
    except ValueError as error:
        field, rest = str(error).partition(" ")[::2]
        if field in vars(args):
            raise ValueError(f"--{field.replace('_', '-')} {rest}") from error
        raise


def _open(args: argparse.Namespace, before: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Make the folder, or go on in it; return what is to be written of the run."""
    if before:
        for change in check_same(before, config, args.out):
            print(f"--resume: {change}", file=sys.stderr)
        # where the run began stays written, and where it goes on is added
        again = {key: config[key] for key in BEGUN}
        return {**config, **{key: before[key] for key in BEGUN}, "resumed": [*before.get("resumed", ()), again]}
    if not args.resume:
        check_new(args.out, "give a new one, or go on by --resume")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"--out {args.out} cannot be made ({error.strerror}): give a folder that can") from error
    return config


def _draw(folder: Path, results: Results) -> None:
    if find_spec("matplotlib") is None:
        print(f"no pictures without matplotlib: {install('plot')}", file=sys.stderr)
        return
    from gsr_kernels.continual.plots import draw_forgetting, draw_losses, draw_spectra

    draw_losses(results, folder / "loss.png")
    if not results.methods():
        print("no other pictures of bounds alone: they learn no task after another", file=sys.stderr)
        return
    if next(iter(results.methods().values()))[0].forgets:
        draw_forgetting(results, folder / "forgetting.png")
    draw_spectra(results, folder / "spectra.png")
