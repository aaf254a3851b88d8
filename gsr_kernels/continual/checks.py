"""Checks of what a run is asked for, before any weight is read."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from gsr_kernels.continual.choose import Chosen
from gsr_kernels.continual.evaluators import evaluator
from gsr_kernels.continual.examples import Source
from gsr_kernels.continual.methods import AdapterMethod
from gsr_kernels.continual.ranks import world
from gsr_kernels.continual.settings import USUAL, RunSettings
from gsr_kernels.messages import need
from gsr_kernels.methods import LwFOwn

# the methods that --fsdp supports, and their bounds: a matrix is nowhere whole there
SHARDED = ("seqft", "gsr", "perft", "mtl")


def usual_methods(model: str | None, kind: str | None, fsdp: bool | None) -> list[str]:
    """Return the methods of a run that names none: those of ``USUAL`` that its model can have."""
    if fsdp:
        return [name for name in USUAL if name in SHARDED]
    if model is not None:
        need("continual", "transformers")
        from gsr_kernels.continual.kinds import KINDS, kind_of
        from gsr_kernels.continual.models import find_config

        if kind_of(find_config(model), kind) is not KINDS["causal"]:
            return [*USUAL[:-1]]
    return [*USUAL]


def check_processes(settings: RunSettings, run: Sequence[Chosen]) -> None:
    """Raise ValueError for a batch that the processes cannot share, for what FSDP2 lacks, and what is not installed."""
    rows = (settings.micro_batch or 1) * world()
    if settings.batch % rows:
        each = f"--micro-batch {settings.micro_batch} of each of " if settings.micro_batch else ""
        raise ValueError(f"batch {settings.batch} must be a multiple of {rows}, {each}the {world()} processes")
    if settings.log is not None and find_spec(settings.log) is None:
        raise ValueError(f"log {settings.log} needs the package {settings.log}: pip install {settings.log}")
    if settings.fsdp:
        if world() == 1:
            raise ValueError("fsdp shards a model over several processes: start them by torchrun, or leave it out")
        for name in settings.methods:
            if name not in SHARDED:
                raise ValueError(
                    f"fsdp has {', '.join(SHARDED)}, not {name}: leave it out, and DDP supports every method"
                )
        if settings.bf16 and settings.dtype != "float32":
            raise ValueError(
                f"fsdp with --bf16 wants weights in float32, got --dtype {settings.dtype}: give one of them"
            )


def check_kind(kind: str, positions: int | None, run: Sequence[Chosen]) -> None:
    """Raise ValueError for a method that is not for such a model."""
    for one in run:
        if kind == "classifier" and isinstance(one.method, AdapterMethod):
            raise ValueError(f"method {one.name} is for models that write, not for a classifier")
        for own in (each for each in one.make() if isinstance(each, LwFOwn)):
            if kind != "causal":
                raise ValueError(f"method {one.name} has the model go on with a text: for decoders, not a {kind}")
            try:
                own.check_length(positions)
            except ValueError as error:
                raise ValueError(f"method {one.name}: {error}") from error


def metrics_of(given: Sequence[str] | None, tasks: Sequence[str]) -> dict[str, str]:
    """Return metrics by task, from ``NAME`` for all of them or ``TASK=NAME``."""
    metrics = {}
    for text in given or ():
        task, equals, metric = text.rpartition("=")
        if equals and task not in tasks:
            raise ValueError(f"--metric {text}: {task!r} is no task; there are {', '.join(tasks)}")
        metrics.update(dict.fromkeys([task] if equals else tasks, metric))
    return metrics


def check_names(tasks: Sequence[Source], retained: Sequence[Source]) -> None:
    names = [source.name for source in (*retained, *tasks)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"--retain and --data both name {', '.join(twice)}: call one file otherwise")


def validates(share: float | None, draws: Sequence[tuple[Sequence[Source], Sequence[Source]]], sweeps: bool) -> bool:
    """Return whether validation rows are scored; ValueError where they are asked for, and a task has none."""
    without = dict.fromkeys(task.name for _, tasks in draws for task in tasks if not task.validation)
    if share is not None and without:
        raise ValueError(
            f"validation {share} leaves {', '.join(without)} without validation rows: give a share above 0"
        )
    return share is not None or (sweeps and not without)


def check_asked(task: Source, asks: Sequence[str], kind: str) -> None:
    asked = evaluator(task.scored_by).asks
    if asked not in asks:
        raise ValueError(
            f"{task.name}: a {kind} cannot be scored by {task.scored_by}; give its rows 'options' and --metric "
            f"{task.name}=accuracy, or a --model that writes"
        )
    if asked == "choice" and not all(row.options for row in (*task.test, *task.validation)):
        raise ValueError(f"{task.name}: --metric {task.scored_by} is for rows with 'options', which some rows lack")
    if "text" not in asks and len({row.options for row in task.rows}) > 1:
        raise ValueError(f"{task.name}: a {kind} wants the same 'options' in every row of a task")
    if task.scored_by == "pass@1" and not all(row.test for row in (*task.test, *task.validation)):
        raise ValueError(
            f"{task.name}: --metric pass@1 is for rows with a 'test', a program text, which some rows lack"
        )
