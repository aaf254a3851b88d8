"""The ways to learn the tasks of one seed: in turn under a method, each alone, all together."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from gsr_kernels.continual.methods import BOUNDS, METHODS, TITLES
from gsr_kernels.continual.metrics import BEFORE, ResultMatrix
from gsr_kernels.continual.results import Spectra
from gsr_kernels.continual.runner.dense import Dense
from gsr_kernels.continual.runner.examples import Example, TextTask
from gsr_kernels.continual.runner.journal import Journal
from gsr_kernels.continual.runner.kinds import Kind
from gsr_kernels.continual.runner.learn import learn, steps_of
from gsr_kernels.continual.runner.models import load, spectra
from gsr_kernels.continual.runner.ranks import first, led
from gsr_kernels.continual.runner.score import score
from gsr_kernels.continual.runner.settings import RunSettings
from gsr_kernels.continual.runner.way import Way
from gsr_kernels.io.atomic import replacing

# a stage of a way: the name of the row that it fills, and what is learned in it
Stage = tuple[str, Sequence[Example]]


class Course:
    """One seed: every way starts from the same model and meets the rows of a task in the same order.

    Args:
        settings: the same for every way.
        kind: of the model.
        known: what the model could do before; never trained on.
        tasks: in the order of training.
        seed: of the order of the rows, of dropout and of a new head.
        folder: of this seed alone; what it holds is gone on from.
        bar: advances by one a step.
    """

    def __init__(
        self,
        settings: RunSettings,
        kind: Kind,
        known: Sequence[TextTask],
        tasks: Sequence[TextTask],
        seed: int,
        folder: Path,
        bar: tqdm,
    ) -> None:
        self._settings = settings
        self._kind = kind
        self._known = known
        self._tasks = tasks
        self._seed = seed
        self._folder = folder
        self._bar = bar

    def learn(self, name: str) -> Journal:
        """All stages of the method or bound of this name."""
        if name == "mtl":
            rows = [row for task in self._tasks for row in task.train]
            return self._stages(name, [(self._tasks[-1].name, rows)], self._way(name), chained=False)
        stages = [(task.name, task.train) for task in self._tasks]
        return self._stages(name, stages, self._way(name), chained=name not in BOUNDS)

    def _way(self, name: str) -> Way:
        entry = METHODS.get(name)
        if entry is not None and entry.adapts:
            from gsr_kernels.continual.runner.adapted import adapted

            return adapted(self._kind, self._settings, name, self._seed)
        method = entry.act(self._settings.method) if entry is not None and entry.act is not None else None
        return Dense(self._kind, self._settings, method, self._seed)

    def _stages(self, name: str, stages: Sequence[Stage], way: Way, chained: bool) -> Journal:
        """Trains, keeps and scores one stage after another, those that the journal lacks."""
        journal = Journal(self._folder / name, self._matrix(), self._settings.keep_models)
        journal.check_order([stage for stage, _ in stages])
        for place, (stage, rows) in enumerate(stages):
            if stage in journal.done:
                self._tick(steps_of(len(rows), self._sized(name)), True)
                continue
            if way.model is None or not chained:
                way.open(journal.model(stages[place - 1][0]) if chained and place else None)
            if chained and not place:
                journal.spectra[BEFORE] = self._spectra(way.model)
            self._announce(name, stage)
            way.begin()
            settings = replace(self._sized(name), lr=way.lr)
            log = learn(
                self._kind,
                way.model,
                rows,
                settings,
                way.prepare,
                journal.work(stage),
                self._order(stage),
                self._tick,
            )
            if chained or settings.keep_models or settings.fsdp:
                journal.keep(stage, way.save)
            if settings.fsdp:
                # not beside the parts
                way.model = None
                way.open(journal.model(stage))
            learned = way.whole()
            scores = self._scores(learned, journal.folder / "answers" / stage)
            journal.finish(stage, scores, self._spectra(learned), log)
            del learned
            if not chained:
                way.model = None
            if first():
                told = "  ".join(f"{task} {value:.1f}" for task, value in scores.items())
                self._bar.write(f"seed {self._seed}  {TITLES[name]:<8} after {stage}: {told}")
        return journal

    def steps(self, name: str) -> int:
        """The optimizer steps of a method or bound."""
        stages = [task.train for task in self._tasks]
        if name == "mtl":
            stages = [tuple(row for rows in stages for row in rows)]
        return sum(steps_of(len(rows), self._sized(name)) for rows in stages)

    def _matrix(self) -> ResultMatrix:
        matrix = ResultMatrix([task.name for task in self._tasks], known=[task.name for task in self._known])
        matrix.record(BEFORE, self._before())
        return matrix

    def _before(self) -> dict[str, float]:
        """The scores of the model before any training, taken once a seed."""
        file = self._folder / "before.json"
        found = led(lambda: file.read_text() if file.is_file() else None)
        if found is not None:
            return json.loads(found)
        self._bar.set_description(f"seed {self._seed} · before any training")
        model = load(self._kind, self._settings.model, self._settings.dtype, self._seed)
        scores = self._scores(model, self._folder / "answers")

        def write() -> None:
            with replacing(file) as path:
                path.write_text(json.dumps(scores))

        led(write)
        return scores

    def _scores(self, model: Any, folder: Path) -> dict[str, float]:
        # as autocast trains; FSDP2's layers are wholly in bfloat16
        with torch.autocast(model.device.type, torch.bfloat16, enabled=self._settings.bf16):
            return {
                task.name: score(self._kind, model, task, self._settings.new_tokens, folder / f"{task.name}.jsonl")
                for task in (*self._known, *self._tasks)
            }

    def _spectra(self, model: Any) -> Spectra:
        return led(lambda: spectra(model))

    def _sized(self, name: str) -> RunSettings:
        """As many steps for all tasks at once as for one after the other."""
        steps = self._settings.steps
        if name != "mtl" or steps is None:
            return self._settings
        return replace(self._settings, steps=steps * len(self._tasks))

    def _order(self, stage: str) -> int:
        return zlib.crc32(f"seed {self._seed}, {stage}".encode())

    def _tick(self, steps: int, before: bool) -> None:
        if before and first():
            # the estimate of the end counts what is done now
            self._bar.initial += steps
        self._bar.update(steps)

    def _announce(self, name: str, stage: str) -> None:
        what = "all" if name == "mtl" else stage
        self._bar.set_description(f"seed {self._seed} · {TITLES[name]} learns {what}")
