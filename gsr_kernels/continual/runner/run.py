"""The command's work with ``--model``: a Hugging Face model learns tasks of the reader's own in turn."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gsr_kernels.continual.evaluators import EVALUATORS, check_metrics
from gsr_kernels.continual.folder import environment
from gsr_kernels.continual.methods import ADAPTERS, BOUNDS, METHODS, TITLES, MethodSettings, adapter_rates
from gsr_kernels.continual.results import Results
from gsr_kernels.continual.runner.examples import Source, TextTask
from gsr_kernels.continual.runner.known import read_known
from gsr_kernels.continual.runner.ranks import first, world
from gsr_kernels.continual.runner.readers import read
from gsr_kernels.continual.runner.settings import FLAGS, RunSettings
from gsr_kernels.messages import install

# the methods that --fsdp has, and the bounds: a matrix is nowhere whole there
CUT = ("seqft", "gsr", *BOUNDS)
# what must be the same where a run goes on
SAME = ("settings", "methods", "known", "tasks")


class Run:
    """The whole run, checked: the model's kind, the data, the methods and the metrics.

    Args:
        args: the command's.
        names: of the methods and bounds.
        method: what their own flags say.

    Raises:
        ValueError, OSError: bad input, found before any weight is read.
    """

    notes: Sequence[str] = ()

    def __init__(self, args: argparse.Namespace, names: tuple[str, ...], method: MethodSettings) -> None:
        for package in ("transformers", "accelerate"):
            if find_spec(package) is None:
                raise ValueError(f"--model needs the package {package}: {install('runner')}")
        given = {each.name: getattr(args, each.name) for each in FLAGS} | {
            key: getattr(args, key) for key in ("model", "seeds", "steps", "lr")
        }
        chosen = {key: value for key, value in given.items() if value is not None}
        self.settings = RunSettings(methods=names, method=method, **chosen)
        _check_processes(self.settings)
        self._described = _describe(names, self.settings)
        if args.data is None:
            raise ValueError("--data is wanted with --model: a folder with a task in each JSON-lines file")

        from gsr_kernels.continual.runner.kinds import Classifier, Writer
        from gsr_kernels.continual.runner.models import open_kind, quiet
        from gsr_kernels.continual.runner.score import check_room

        with quiet():
            self.kind = open_kind(self.settings)
        classifies = isinstance(self.kind, Classifier)
        if classifies and (adapted := [name for name in names if name in ADAPTERS]):
            raise ValueError(f"method {adapted[0]} is for models that write, not for a classifier")
        if not classifies and self.settings.head_lr is not None:
            raise ValueError("head_lr is for a classifier's new head; a model that writes has none")
        if classifies and args.known:
            raise ValueError("--known is for models that write: a classifier's new head knows nothing before")
        there = read(args.data, args.order, args.partial, instructed=not classifies)
        self.lacking = there.lacking
        metrics = _metrics(args.metric, [source.name for source in there.sources])
        self.tasks = tuple(source.scored(metrics.get(source.name)) for source in there.sources)
        self.known = tuple(read_known(path, self._fits) for path in args.known or ())
        _check_names(self.tasks, self.known)
        check_metrics([source.scored_by for source in (*self.tasks, *self.known)])
        self._draws = [self._draw(seed) for seed in self.settings.numbers]
        for known, tasks in self._draws:
            for task in (*known, *tasks):
                _check_asked(task, self.kind.asks, self.kind.name)
                if isinstance(self.kind, Writer):
                    check_room(self.kind, task, self.settings.new_tokens)
        rows = {
            row: None for known, tasks in self._draws for task in (*known, *tasks) for row in (*task.train, *task.test)
        }
        if isinstance(self.kind, Classifier):
            self.kind.choose_among(row.options for row in rows)
        # a row that the tokenizer cannot take is met now
        for row in tqdm(rows, "rows into tokens", unit="row", leave=False, disable=not first() or None):
            self.kind.features(row)
        self._cut = {"prompts": len(self.kind.cut), "completions": len(self.kind.cut_completions)}
        self.out: Path = args.out

    @property
    def config(self) -> dict[str, Any]:
        """All that decides the numbers, for config.json."""
        here = environment()
        for package in ("transformers", "accelerate", "peft", "tokenizers"):
            here["versions"][package] = version(package) if find_spec(package) else None
        return {
            "settings": dataclasses.asdict(self.settings) | {"kind": self.kind.name, "processes": world()},
            "methods": self._described,
            "known": {source.name: source.described() for source in self.known},
            "tasks": {source.name: source.described() for source in self.tasks},
            "lacking": list(self.lacking),
            **here,
        }

    def check_same(self, before: Mapping[str, Any]) -> None:
        """Raises ValueError, naming what differs, where a folder's configuration is not this run's."""
        now = json.loads(json.dumps(self.config))
        # a folder of before a setting came was made as its default says
        were = {"processes": 1} | {each.name: each.default for each in FLAGS}
        before = {**before, "settings": were | before.get("settings", {})}
        for part in SAME:
            for key in {**before.get(part, {}), **now[part]}:
                old, new = before.get(part, {}).get(key), now[part].get(key)
                if old != new:
                    raise ValueError(f"--resume: {part} {key} was {old!r} in {self.out} and is {new!r} now")
        for part in ("tasks", "known", "lacking"):
            old, new = list(before.get(part, ())), list(now[part])
            if old != new:
                raise ValueError(
                    f"--resume: the order of {part} was {', '.join(old)} in {self.out} and is {', '.join(new)} now"
                )

    def run(self, keep: Callable[[Results], object]) -> Results:
        """Trains and scores what the folder does not hold yet; ``keep`` is called after every method of a seed."""
        from gsr_kernels.continual.runner.course import Course
        from gsr_kernels.continual.runner.models import quiet

        started = time.perf_counter()
        results = Results(self._score(), {})
        # a log file wants few lines
        interval = 0.2 if sys.stderr.isatty() else 20.0
        shown = {"mininterval": interval, "smoothing": 0, "dynamic_ncols": True, "disable": not first()}
        with quiet(), tqdm(unit="step", **shown) as bar:
            courses = [
                Course(self.settings, self.kind, *draw, seed, self.out / "work" / f"seed-{seed}", bar)
                for seed, draw in zip(self.settings.numbers, self._draws)
            ]
            bar.total = sum(course.steps(name) for course in courses for name in self.settings.methods)
            for place, course in enumerate(courses):
                for name in self.settings.methods:
                    journal = course.learn(name)
                    results.matrices.setdefault(TITLES[name], []).append(journal.matrix)
                    if place == 0 and name not in BOUNDS:
                        results.spectra[TITLES[name]] = journal.spectra
                    results.seconds = time.perf_counter() - started
                    keep(results)
        return results

    def conditions(self, results: Results) -> str:
        """What was learned, and how."""
        settings = self.settings
        length = f"{settings.steps} steps" if settings.steps else f"{settings.epochs:g} epochs"
        done = results.seeds() if len(results.matrices) == len(settings.methods) else 0
        seeds = str(settings.seeds) if done == settings.seeds else f"{done} of {settings.seeds}, unfinished"
        by = f", by {world()} processes, {'FSDP2' if settings.fsdp else 'DDP'}" if world() > 1 else ""
        clipped = f"cut to norm {settings.max_grad_norm:g}" if settings.max_grad_norm else "not cut"
        width = max(len(source.name) for source in (*self.known, *self.tasks))
        lines = [
            f"{settings.model} ({self.kind.name}) learns {len(self.tasks)} tasks in turn, {length} of {settings.batch} "
            f"rows a step each{by}.",
            f"Seeds: {seeds}; each with an order of the rows, and where a task has no test rows of its own a split of "
            "them, the same for every method.",
            f"AdamW, lr {settings.lr:g} for every method{adapter_rates(settings.methods, settings.method)}, warm-up "
            f"{settings.warmup:.0%}, then {settings.schedule}; gradients {clipped}; "
            f"rho {settings.method.rho:g}, rank {settings.method.rank or 'full'}.",
            "",
        ]
        for source, what in [(one, "known before, ") for one in self.known] + [(one, "") for one in self.tasks]:
            about = EVALUATORS[source.scored_by].about
            lines.append(f"  {source.name:<{width}}  {source.about}; {what}score: {about}, %")
        if self.lacking:
            lines += ["", f"Lacking in this copy of the data, and left out: {', '.join(self.lacking)}."]
        for what, count in self._cut.items():
            if count:
                lines += ["", f"{count} {what} do not fit into {settings.max_tokens} tokens and are cut."]
        return "\n".join(lines)

    def _fits(self, text: str) -> bool:
        # beside the end of a text
        return len(self.kind.tokenizer(text, add_special_tokens=False)["input_ids"]) < self.settings.max_tokens

    def _draw(self, seed: int) -> tuple[list[TextTask], list[TextTask]]:
        limits = {"train_rows": self.settings.train_rows, "test_rows": self.settings.test_rows}
        known = [source.draw(0, test_rows=self.settings.test_rows) for source in self.known]
        return known, [source.draw(seed, **limits) for source in self.tasks]

    def _score(self) -> str:
        sources = (*self.known, *self.tasks)
        return "; ".join(f"{source.name}: percent, {EVALUATORS[source.scored_by].about}" for source in sources)


def _describe(names: Sequence[str], settings: RunSettings) -> dict[str, str]:
    """All settings of each method. Raises ValueError for one that is not to be had for these models, or here."""
    described = {}
    for name in names:
        if name in BOUNDS:
            continue
        act = METHODS[name].act
        if act is not None:
            method = act(settings.method)
            described[TITLES[name]] = "the optimizer alone" if method is None else repr(method)
        elif name not in ADAPTERS:
            having = [other for other, entry in METHODS.items() if entry.act is not None or entry.adapts]
            raise ValueError(f"method {name} is not to be had with --model; there are {', '.join(having)}")
        elif find_spec("peft") is None:
            raise ValueError(f"method {name} needs the package peft: {install('runner')}")
        else:
            from gsr_kernels.continual.adapting import ADAPTING

            rank, lr = settings.method.adapter_rank, settings.method.adapter_lr
            adapters = f"rank {rank}, lr {lr:g}, dropout {settings.adapter_dropout:g}"
            described[TITLES[name]] = f"{adapters}, {ADAPTING[name].described(settings.method, settings.adapter_lam)}"
    return described


def _check_processes(settings: RunSettings) -> None:
    """Raises ValueError for a batch that the processes cannot share evenly, and for what FSDP2 does not serve."""
    rows = (settings.micro_batch or 1) * world()
    if settings.batch % rows:
        each = f"--micro-batch {settings.micro_batch} of each of " if settings.micro_batch else ""
        raise ValueError(f"batch {settings.batch} must be a multiple of {rows}, {each}the {world()} processes")
    if settings.fsdp:
        if world() == 1:
            raise ValueError("fsdp cuts a model over several processes: start them by torchrun, or leave it out")
        for name in settings.methods:
            if name not in CUT:
                raise ValueError(f"fsdp has {', '.join(CUT)}, not {name}: leave it out, and DDP serves every method")
        if settings.bf16 and settings.dtype != "float32":
            raise ValueError(
                f"fsdp with --bf16 wants weights in float32, got --dtype {settings.dtype}: give one of them"
            )


def _metrics(given: Sequence[str] | None, tasks: Sequence[str]) -> dict[str, str]:
    """By task, from ``NAME`` for all of them or ``TASK=NAME``."""
    metrics = {}
    for text in given or ():
        task, equals, metric = text.rpartition("=")
        if equals and task not in tasks:
            raise ValueError(f"--metric {text}: {task!r} is no task; there are {', '.join(tasks)}")
        metrics.update(dict.fromkeys([task] if equals else tasks, metric))
    return metrics


def _check_names(tasks: Sequence[Source], known: Sequence[Source]) -> None:
    names = [source.name for source in (*known, *tasks)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"--known and --data both name {', '.join(twice)}: call one file otherwise")
    if len(names) < 2:
        raise ValueError("--data holds one task alone: forgetting wants two, or one and one by --known")


def _check_asked(task: TextTask, asks: Sequence[str], kind: str) -> None:
    asked = EVALUATORS[task.metric].asks
    if asked not in asks:
        raise ValueError(
            f"{task.name}: a {kind} cannot be scored by {task.metric}; give its rows 'options' and --metric "
            f"{task.name}=accuracy, or a --model that writes"
        )
    if asked == "choice" and not all(row.options for row in task.test):
        raise ValueError(f"{task.name}: --metric {task.metric} is for rows with 'options', which some rows lack")
    if "text" not in asks and len({row.options for row in (*task.train, *task.test)}) > 1:
        raise ValueError(f"{task.name}: a {kind} wants the same 'options' in every row of a task")
    if task.metric == "pass@1" and not all(row.test for row in task.test):
        raise ValueError(
            f"{task.name}: --metric pass@1 is for rows with a 'test', a program text, which some rows lack"
        )
