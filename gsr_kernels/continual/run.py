"""Sequential run: a model learns tasks in turn under each method, and is scored on all of them after each."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

import gsr_kernels
from gsr_kernels.continual.checks import check_asked, check_kind, check_names, check_processes, metrics_of, validates
from gsr_kernels.continual.choose import check_read, choose, find_baseline, scratch_of
from gsr_kernels.continual.evaluators import check_metrics, evaluator
from gsr_kernels.continual.examples import Source
from gsr_kernels.continual.folder import commit
from gsr_kernels.continual.methods import AdapterMethod, bound_of
from gsr_kernels.continual.metrics import ResultMatrix, Results
from gsr_kernels.continual.ranks import first, on_rank0, world
from gsr_kernels.continual.readers import Read, read, read_retained
from gsr_kernels.continual.run_state import TEST, VALIDATION
from gsr_kernels.continual.settings import DemoSettings, RunSettings, given
from gsr_kernels.io.digests import model_digests
from gsr_kernels.messages import need

if TYPE_CHECKING:
    from gsr_kernels.continual.task_sequence import TaskSequence


class Run:
    """Run, whole and checked; ValueError and OSError for bad input, before any weight is read."""

    def __init__(self, args: argparse.Namespace, names: tuple[str, ...]) -> None:
        for package in ("transformers", "accelerate"):
            need("continual", package)
        asked, size = given(RunSettings, args), given(DemoSettings, args)
        if args.model is None:
            asked["demo"] = DemoSettings(**size)
        elif size:
            raise ValueError(f"{', '.join('--' + name.replace('_', '-') for name in size)}: only without --model")
        self.settings = RunSettings(methods=names, **asked)
        self.chosen = choose(names, args.set, args.sweep, self.settings)
        self.baseline = find_baseline(args.baseline, self.chosen)
        check_read([*asked], [*self.chosen.values()])
        check_processes(self.settings, [*self.chosen.values()])
        if args.data is None and args.model is not None:
            raise ValueError("--data is wanted with --model: a folder with a task in each JSON-lines file")

        from gsr_kernels.continual.kinds import Classifier, Writer
        from gsr_kernels.continual.models import check_weights, find_model, open_kind, quiet
        from gsr_kernels.continual.plan import survey
        from gsr_kernels.continual.score import check_room

        self.retained: tuple[Source, ...] = ()
        self.notes: Sequence[str] = ()
        with quiet():
            if self.settings.demo is not None:
                from gsr_kernels.continual import demo

                tokenizer = demo.byte_tokenizer()
                config = demo.config(self.settings.demo, tokenizer)
                self.retained, self.notes = (demo.general(),), (demo.CAUTION,)
            else:
                config, tokenizer = find_model(str(self.settings.model))
            self.kind = open_kind(self.settings, config, tokenizer)
            self._commit = getattr(config, "_commit_hash", None)
            classifies = isinstance(self.kind, Classifier)
            check_kind(self.kind.name, self.kind.positions, [*self.chosen.values()])
            self._bare = check_weights(config, self.kind, self.chosen.values())
        if not classifies and self.settings.head_lr is not None:
            raise ValueError("head_lr is for a classifier's new head; a model that writes has none")
        if classifies and args.retain:
            raise ValueError("--retain is for models that write: a classifier's new head knows nothing before")
        if args.data is None:
            there: Read = demo.tasks(args.order)
        else:
            there = read(args.data, args.order, args.partial, instructed=not classifies)
        self.lacking = there.lacking
        metrics = metrics_of(args.metric, [source.name for source in there.sources])
        self.tasks = tuple(
            dataclasses.replace(source, metric=metrics.get(source.name, source.metric)) for source in there.sources
        )
        self.retained += tuple(read_retained(path, self._fits) for path in args.retain or ())
        check_names(self.tasks, self.retained)
        self._all = (*self.retained, *self.tasks)
        check_metrics([source.scored_by for source in self._all])
        self._draws = [self._draw(seed) for seed in self.settings.numbers]
        drawn = [task for retained, tasks in self._draws for task in (*retained, *tasks)]
        self.sweeps = {
            one.method.title: titles
            for one in self.chosen.values()
            if len(titles := [each.title for each in self.chosen.values() if each.method.title == one.method.title]) > 1
        }
        self._validates = validates(self.settings.validation, self._draws, bool(self.sweeps))
        for task in drawn:
            check_asked(task, self.kind.asks, self.kind.name)
        if isinstance(self.kind, Classifier):
            self.kind.choose_among((task.name, row.options) for task in drawn for row in task.rows)
        self._rows = survey(self.kind, drawn)
        if isinstance(self.kind, Writer):
            for task in drawn:
                check_room(self.kind, task, self.settings.new_tokens)
        self.out: Path = args.out
        self.sets = tuple(dict.fromkeys(args.set))

    @property
    def config(self) -> dict[str, Any]:
        """Return all that decides the numbers, for config.json."""
        names = ("torch", "numpy", "transformers", "accelerate", "peft", "tokenizers")
        packages = {name: version(name) if find_spec(name) else None for name in names}
        ours = {"gsr_kernels": gsr_kernels.__version__, "commit": commit(), "python": platform.python_version()}
        return {
            "settings": dataclasses.asdict(self.settings) | {"kind": self.kind.name, "processes": world()},
            "methods": {one.title: one.described() for one in self.chosen.values()},
            "model": on_rank0(self._model_digests),
            "retained": {source.name: source.described() for source in self.retained},
            "tasks": {source.name: source.described() for source in self.tasks},
            "lacking": list(self.lacking),
            "versions": ours | packages,
            "machine": platform.platform(),
            "threads": torch.get_num_threads(),
        }

    def _model_digests(self) -> Mapping[str, str | None]:
        """Return what the model before all tasks is known by; the demo's follows from its settings."""
        if self.settings.model is None:
            return {}
        # a hub names what it holds
        if Path(self.settings.model).is_dir():
            return model_digests(self.settings.model)
        return {"name": self.settings.model, "commit": self._commit}

    def sequences(self, bar: tqdm | None) -> list[TaskSequence]:
        """Return the tasks of each seed."""
        from gsr_kernels.continual.task_sequence import TaskSequence

        folders = [self.out / "work" / f"seed-{seed}" for seed in self.settings.numbers]
        return [
            TaskSequence(
                self.settings,
                self.kind,
                self.settings.model or folder / "pretrained",
                *draw,
                seed,
                folder,
                bar,
                draw[1] if self._validates else (),
            )
            for folder, draw, seed in zip(folders, self._draws, self.settings.numbers)
        ]

    def plan(self) -> str:
        """Describe what is about to be learned, and what it takes."""
        from gsr_kernels.continual.models import quiet
        from gsr_kernels.continual.plan import describe

        sequences = self.sequences(None)
        steps = {name: [each.steps(one) for each in sequences] for name, one in self.chosen.items()}
        with quiet():
            return describe(self._bare, self.kind, self.chosen, [*chain(*self._draws[0])], self._rows, steps, self.out)

    def run(self, keep: Callable[[Results], object]) -> Results:
        """Train and score what the folder does not hold yet; ``keep`` is called after every method of a seed."""
        from gsr_kernels.continual.models import quiet
        from gsr_kernels.continual.trainer import DivergenceError

        started = time.perf_counter()
        scores = (f"{source.name}: percent, {evaluator(source.scored_by).about}" for source in self._all)
        results = Results(
            "; ".join(scores),
            {},
            rows={source.name: len(source.test) for each in self._draws[0] for source in each},
            seeds=self.settings.numbers,
            scratch={one.title: scratch_of(one, self.chosen) for one in self.chosen.values() if one.chained},
            baseline=self.baseline,
            sweeps=self.sweeps,
        )
        # a log file wants few lines
        interval = 0.2 if sys.stderr.isatty() else 20.0
        shown = {"mininterval": interval, "smoothing": 0, "dynamic_ncols": True, "disable": not first()}
        with quiet(), _light_collections(), tqdm(unit="step", **shown) as bar:
            sequences = self.sequences(bar)
            bar.total = sum(sum(sequence.steps(one)) for sequence in sequences for one in self.chosen.values())
            if self.settings.demo is not None:
                bar.total += self.settings.demo.pretrain_steps * len(sequences)
            turns = [(sequence, one) for sequence in sequences for one in self.chosen.values()]
            # what was finished before is in the results at once
            for sequence, one in sorted(turns, key=lambda turn: not turn[0].is_done(turn[1])):
                # of every method the same seeds are compared
                if one.title in results.diverged:
                    continue
                try:
                    state = sequence.learn(one)
                except DivergenceError as error:
                    results.diverged[one.title] = f"seed {sequence.seed}, {error}"
                else:
                    results.matrices.setdefault(one.title, []).append(state.matrices[TEST])
                    if self._validates:
                        results.validation.setdefault(one.title, []).append(state.matrices[VALIDATION])
                    if sequence is sequences[0]:
                        results.losses[one.title] = state.losses
                        if one.chained:
                            results.spectra[one.title] = state.spectra
                results.seconds = time.perf_counter() - started
                if results.matrices:
                    keep(results)
        return results

    def conditions(self, results: Results) -> str:
        """Describe what was learned, and how."""
        settings = self.settings
        length = f"{settings.steps} steps" if settings.steps else f"{settings.epochs:g} epochs"
        whole = len(results.matrices | results.diverged) == len(self.chosen)
        ended = [len(each) for title, each in results.matrices.items() if title not in results.diverged]
        done = min(ended) if ended and whole else 0
        numbers = settings.numbers
        seeds = str(len(numbers)) if done == len(numbers) else f"{done} of {len(numbers)}, unfinished"
        by = f", by {world()} processes, {'FSDP2' if settings.fsdp else 'DDP'}" if world() > 1 else ""
        clipped = f"clipped to norm {settings.max_grad_norm:g}" if settings.max_grad_norm else "not clipped"
        adapts = any(isinstance(one.method, AdapterMethod) for one in self.chosen.values())
        rates = f", {settings.adapter_lr:g} for adapters (rank {settings.adapter_rank})" if adapts else ""
        width = max(len(source.name) for source in self._all)
        size = settings.demo
        model = f"{settings.model} ({self.kind.name})"
        if size is not None:
            model = (
                f"A Llama of {size.layers} layers and width {size.width}, with bytes for tokens, pretrained with every "
                f"seed for {size.pretrain_steps} steps,"
            )
        lines = [
            f"{model} learns {len(self.tasks)} tasks in turn, {length} of {settings.batch} rows a step each{by}.",
            f"Seeds: {seeds}; each with an order of the rows, and where a task has no test rows of its own a split of "
            "them, the same for every method.",
            f"AdamW, lr {settings.lr:g} for every method{rates}, warm-up "
            f"{settings.warmup:.0%}, then {settings.schedule}; gradients {clipped}; "
            f"rho {settings.rho:g}, rank {settings.rank or 'full'}.",
            *([f"Set by method: {', '.join(self.sets)}."] if self.sets else []),
            "",
        ]
        for source in self._all:
            about, what = evaluator(source.scored_by).about, "known before, " if source in self.retained else ""
            lines.append(f"  {source.name:<{width}}  {source.about}; {what}score: {about}, %")
        beyond = [f"{one.title} keeps {one.method.keeps}" for one in self.chosen.values() if one.method.keeps]
        if beyond:
            lines += ["", f"Outside the strict setting, in which nothing is kept: {'; '.join(beyond)}."]
        if self.lacking:
            lines += ["", f"Lacking in this copy of the data, and left out: {', '.join(self.lacking)}."]
        for title, why in results.diverged.items():
            lines += ["", f"{title} diverged, and ends there: {why}."]
        for title, each in results.matrices.items():
            if gone := _unscored(title, each[0]):
                lines += ["", f"{title} has no score on {', '.join(gone)}: the models were not kept (--keep-models)."]
        cuts = [str(each) for each in self._rows if each.prompts or each.completions]
        if cuts:
            lines += ["", f"What does not fit into {settings.max_tokens} tokens: {'; '.join(cuts)}."]
        return "\n".join(lines)

    def _fits(self, text: str) -> bool:
        # beside the end of a text
        return len(self.kind.tokenizer(text, add_special_tokens=False)["input_ids"]) < self.settings.max_tokens

    def _draw(self, seed: int) -> tuple[list[Source], list[Source]]:
        limits = {"train_rows": self.settings.train_rows, "test_rows": self.settings.test_rows}
        # a text that is pretrained on is split anew by each seed
        retained = [source.draw(seed if source.train else 0, test_rows=limits["test_rows"]) for source in self.retained]
        return retained, [source.draw(seed, **limits, share=self.settings.validation or 0) for source in self.tasks]


@contextlib.contextmanager
def _light_collections() -> Iterator[None]:
    # accelerate collects at every task; what is there by now need not be passed over each time
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _unscored(title: str, matrix: ResultMatrix) -> list[str]:
    """Return what is lacking in the rows of a method: of a task that was added, the scores of models that are gone."""
    rows = matrix.tasks[-1:] if bound_of(title) == "at once" else matrix.tasks
    return [f"{task} after {row}" for row in rows for task in matrix.lacking(row)]
