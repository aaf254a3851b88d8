"""Tasks of one seed, learned in turn under a method, each alone, or all at once."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from gsr_kernels.continual.examples import Example, TextTask
from gsr_kernels.continual.kinds import Kind
from gsr_kernels.continual.learn import learn, steps_of
from gsr_kernels.continual.methods import BOUNDS, METHODS, TITLES
from gsr_kernels.continual.metrics import BEFORE, ResultMatrix
from gsr_kernels.continual.models import load, spectra
from gsr_kernels.continual.ranks import first, on_rank0
from gsr_kernels.continual.results import Spectra
from gsr_kernels.continual.run_state import RunState
from gsr_kernels.continual.score import score
from gsr_kernels.continual.settings import RunSettings
from gsr_kernels.continual.strategies.base import Strategy
from gsr_kernels.continual.strategies.dense import Consolidated, Dense
from gsr_kernels.io.atomic import replacing

# a stage of a method: the name of the row that it fills, and what is learned in it
Stage = tuple[str, Sequence[Example]]


class TaskSequence:
    """One seed: every method starts from the same model and meets the rows of a task in the same order.

    Args:
        settings: the same for every method.
        kind: of the model.
        start: the model before all tasks.
        retained: what it could do before; never trained on.
        tasks: in the order of training.
        seed: of the order of the rows, of dropout and of a new head.
        folder: of this seed alone; what it holds is gone on from.
        bar: advances by one a step.
    """

    def __init__(
        self,
        settings: RunSettings,
        kind: Kind,
        start: str | Path,
        retained: Sequence[TextTask],
        tasks: Sequence[TextTask],
        seed: int,
        folder: Path,
        bar: tqdm,
    ) -> None:
        self._settings = settings
        self._kind = kind
        self._start = start
        self._retained = retained
        self._tasks = tasks
        self._seed = seed
        self._folder = folder
        self._bar = bar

    def pretrain(self) -> None:
        """Make the demo's model, which is pretrained on what is retained."""
        if self._settings.demo is not None:
            from gsr_kernels.continual.demo import pretrain

            self._bar.set_description(f"seed {self._seed} · pretraining")
            rows = self._retained[0].train
            pretrain(self._kind, self._settings, rows, self._seed, Path(self._start), self._tick)

    def learn(self, name: str) -> RunState:
        """Learn all stages of the method or bound of this name."""
        if name == "mtl":
            rows = [row for task in self._tasks for row in task.train]
            return self._stages(name, [(self._tasks[-1].name, rows)], self._strategy(name), chained=False)
        stages = [(task.name, task.train) for task in self._tasks]
        return self._stages(name, stages, self._strategy(name), chained=name not in BOUNDS)

    def _strategy(self, name: str) -> Strategy:
        entry = METHODS.get(name)
        if entry is not None and entry.adapts:
            from gsr_kernels.continual.strategies.adapters import adapter_strategy

            return adapter_strategy(self._kind, self._settings, self._start, name, self._seed)
        method = entry.act(self._settings) if entry is not None and entry.act is not None else None
        made = Consolidated if entry is not None and entry.consolidates else Dense
        return made(self._kind, self._settings, self._start, method, self._seed)

    def _stages(self, name: str, stages: Sequence[Stage], strategy: Strategy, chained: bool) -> RunState:
        """Train, keep and score one stage after another, those that the state lacks."""
        state = RunState(self._folder / name, self._matrix(), self._settings.keep_models)
        state.check_order([stage for stage, _ in stages])
        for index, (stage, rows) in enumerate(stages):
            if stage in state.done:
                self._tick(steps_of(len(rows), self._sized(name)), True)
                continue
            if strategy.model is None or not chained:
                strategy.open(state.model(stages[index - 1][0]) if chained and index else None)
            if chained and not index:
                state.spectra[BEFORE] = self._spectra(strategy.model)
            self._announce(name, stage)
            strategy.begin()
            settings = replace(self._sized(name), lr=strategy.lr)
            log = learn(
                self._kind,
                strategy.model,
                rows,
                settings,
                strategy.prepare,
                state.work(stage),
                self._order(stage),
                self._tick,
            )
            if chained or settings.keep_models or settings.fsdp:
                state.keep(stage, strategy.save)
            if settings.fsdp:
                # not beside the shards
                strategy.model = None
                strategy.open(state.model(stage))
            learned = strategy.whole()
            scores = self._scores(learned, state.folder / "answers" / stage)
            state.finish(stage, scores, self._spectra(learned), log)
            del learned
            if not chained:
                strategy.model = None
            if first():
                told = "  ".join(f"{task} {value:.1f}" for task, value in scores.items())
                self._bar.write(f"seed {self._seed}  {TITLES[name]:<8} after {stage}: {told}")
        return state

    def steps(self, name: str) -> int:
        """Return the optimizer steps of a method or bound."""
        stages = [task.train for task in self._tasks]
        if name == "mtl":
            stages = [tuple(row for rows in stages for row in rows)]
        return sum(steps_of(len(rows), self._sized(name)) for rows in stages)

    def _matrix(self) -> ResultMatrix:
        matrix = ResultMatrix([task.name for task in self._tasks], known=[task.name for task in self._retained])
        matrix.record(BEFORE, self._before())
        return matrix

    def _before(self) -> dict[str, float]:
        """The scores of the model before any training, taken once a seed."""
        file = self._folder / "before.json"
        found = on_rank0(lambda: file.read_text() if file.is_file() else None)
        if found is not None:
            return json.loads(found)
        self._bar.set_description(f"seed {self._seed} · before any training")
        model = load(self._kind, self._start, self._settings.dtype, self._seed)
        scores = self._scores(model, self._folder / "answers")

        def write() -> None:
            with replacing(file) as path:
                path.write_text(json.dumps(scores))

        on_rank0(write)
        return scores

    def _scores(self, model: Any, folder: Path) -> dict[str, float]:
        # as autocast trains; FSDP2's layers are wholly in bfloat16
        with torch.autocast(model.device.type, torch.bfloat16, enabled=self._settings.bf16):
            return {
                task.name: score(self._kind, model, task, self._settings.new_tokens, folder / f"{task.name}.jsonl")
                for task in (*self._retained, *self._tasks)
            }

    def _spectra(self, model: Any) -> Spectra:
        return on_rank0(lambda: spectra(model))

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
