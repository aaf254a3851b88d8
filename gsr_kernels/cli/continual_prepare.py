"""``python -m gsr_kernels continual prepare RAW``: the tasks of a recipe, from local copies of published files."""

from __future__ import annotations

import argparse

from gsr_kernels.cli import aligned, continual, path_of
from gsr_kernels.continual.checks import metrics_of
from gsr_kernels.continual.folder import check_new
from gsr_kernels.continual.recipe import expand
from gsr_kernels.continual.settings import RunSettings, given
from gsr_kernels.messages import need


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    add = parser.add_argument
    add("raw", type=path_of, metavar="RAW", help="a folder of files for each task, as they were published")
    add("--out", type=path_of, required=True, metavar="DIR", help="for the tasks, the run's --data; new or empty")
    add("--recipe", default="gsr-paper", metavar="NAME", help="of the run (default: gsr-paper)")
    add("--model", metavar="MODEL", help="whose tokens are counted (default: the recipe's)")
    add("--tokens", type=int, default=4_000_000, metavar="N", help="to learn of a task (default: 4000000)")
    add("--seed", type=int, default=0, help="by which these rows are drawn (default: 0)")


def run(args: argparse.Namespace) -> None:
    """Write the tasks and tell what was left out; ValueError and OSError for bad input, before anything is written."""
    for package in ("transformers", "accelerate"):
        need("continual prepare", package)
    from gsr_kernels.continual.kinds import Causal
    from gsr_kernels.continual.models import find_model, open_kind, quiet
    from gsr_kernels.continual.prepare import prepare

    if args.tokens < 1:
        raise ValueError(f"--tokens must be at least 1, got {args.tokens}")
    check_new(args.out, "give a new one")
    parser = argparse.ArgumentParser(allow_abbrev=False)
    continual.add_arguments(parser)
    model = ["--model", args.model] if args.model else []
    asked = parser.parse_args(expand(["--recipe", args.recipe, *model], demo=False))
    names = [name.strip() for name in (asked.order or "").split(",")]
    if lacking := [name for name in names if not (args.raw / name).is_dir()]:
        raise FileNotFoundError(
            f"RAW {args.raw} lacks {', '.join(lacking)} of --recipe {args.recipe}: make a folder of files for each"
        )
    metrics = metrics_of(asked.metric, names)
    settings = RunSettings(**given(RunSettings, asked))
    with quiet():
        kind = open_kind(settings, *find_model(str(settings.model)))
        if not isinstance(kind, Causal):
            raise ValueError(f"--model {settings.model} is no decoder, whose tokens are counted here")
        tasks = [prepare(args.raw / name, metrics.get(name, "exact"), kind, args.tokens, args.seed) for name in names]
    table = [("task", "learned", "tokens", "validation", "scored")]
    for task in tasks:
        task.write(args.out)
        learned, validation, scored = (len(task.splits.get(split, ())) for split in ("train", "validation", "test"))
        # of a task without a test each seed of the run draws a fifth
        counts = (f"{learned:,}", f"{task.tokens:,}", f"{validation:,}", f"{scored:,}" if scored else "drawn")
        table.append((task.name, *counts))
    print("\n".join(aligned(table)))
    for task in tasks:
        reasons = [f"{number:,} {why}" for why, number in task.dropped.most_common()]
        print(f"{task.name}: left out: {'; '.join(reasons) or 'nothing'}")
    print(f"go on with python -m gsr_kernels continual --recipe {args.recipe} --data {args.out} --out RUN")
