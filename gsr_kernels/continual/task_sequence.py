"""Tasks of one seed, learned in turn under a method, each alone, or all at once."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from gsr_kernels.continual import strategy as strategies
from gsr_kernels.continual.baselines import Replay
from gsr_kernels.continual.choose import Chosen
from gsr_kernels.continual.examples import Example, Source
from gsr_kernels.continual.folder import write_json
from gsr_kernels.continual.kinds import Classifier, Kind
from gsr_kernels.continual.learn import learn, steps_of
from gsr_kernels.continual.methods import AdapterMethod
from gsr_kernels.continual.metrics import BEFORE, ResultMatrix
from gsr_kernels.continual.models import load, spectra
from gsr_kernels.continual.ranks import first, on_rank0
from gsr_kernels.continual.run_state import STATE, TEST, VALIDATION, RunState, keep_whole, read_state, remove
from gsr_kernels.continual.score import score
from gsr_kernels.continual.settings import RunSettings
from gsr_kernels.continual.stop import stop_if_told
from gsr_kernels.continual.strategy import Strategy
from gsr_kernels.continual.trainer import DivergenceError, check_weights


@dataclass
class TaskSequence:
    """One seed, gone on from what its folder holds: the same first model and order of rows for every method."""

    settings: RunSettings
    kind: Kind
    start: str | Path
    retained: Sequence[Source]
    tasks: Sequence[Source]
    seed: int
    folder: Path
    # None: nothing is learned
    bar: Any
    # the tasks whose validation rows are scored as well
    validated: Sequence[Source] = ()

    def learn(self, chosen: Chosen) -> RunState:
        """Learn all stages of a method or bound: train, keep and score those that the state lacks."""
        method, chained = chosen.method, chosen.chained
        strategy, settings = self._strategy(chosen), self._sized(chosen)
        state = self._state(chosen)
        # of the stage before, where it counts
        before: Path | None = None
        stages = self._stages(chosen)
        for index, (stage, rows) in enumerate(stages.items()):
            if stage in state.done:
                self._tick(steps_of(len(rows), settings), True)
                before = state.model(stage) if chained else None
                # of tasks that were added since; the model after another stage may be gone
                if (lacking := state.lacking(stage)) and state.model(stage).is_dir():
                    strategy.open(state.model(stage))
                    state.add(stage, self.scores(strategy.whole(), state.folder / "answers" / stage, lacking))
                    strategy.model = None
                continue
            stop_if_told()
            if strategy.model is None:
                strategy.open(before)
            if chained and not state.done:
                state.spectra[BEFORE] = on_rank0(partial(spectra, strategy.model))
            self.bar.set_description(
                f"seed {self.seed} · {chosen.title} learns {'all' if method.bound == 'at once' else stage}"
            )
            self.bar.set_postfix_str("", refresh=False)
            strategy.task, strategy.tasks = index, len(stages)
            if isinstance(self.kind, Classifier):
                known = self.tasks if method.bound == "at once" else self.tasks[: index + 1]
                self.kind.set_labels(strategy.model, [task.name for task in known], self.seed)
            strategy.begin()
            log = learn(
                self.kind,
                strategy.model,
                rows,
                replace(settings, lr=strategy.lr),
                strategy.prepare,
                state.work(stage),
                zlib.crc32(f"seed {self.seed}, {stage}".encode()),
                self._tick,
                lambda loss: self.bar.set_postfix_str(f"loss {loss:.3g}", refresh=False),
            )
            if chained or settings.keep_models or settings.fsdp:
                keep_whole(state.model(stage), strategy.save)
            if settings.fsdp:
                # not beside the shards
                strategy.model = None
                strategy.open(state.model(stage))
            learned = strategy.whole()
            # adapters may be finite where what they add up to is not
            check_weights(learned, strategy.lr)
            scores = self.scores(learned, state.folder / "answers" / stage)
            sigma = on_rank0(partial(spectra, learned))
            if not all(map(math.isfinite, chain(*(each.values() for each in scores.values()), *sigma.values()))):
                raise DivergenceError(
                    f"scores or singular values are not finite after {stage}: lr {strategy.lr} is too high"
                )
            state.finish(stage, scores, sigma, log)
            del learned
            if not chained:
                strategy.model = None
            if first():
                told = "  ".join(f"{task} {value:.1f}" for task, value in scores[TEST].items())
                self.bar.write(f"seed {self.seed}  {chosen.title:<8} after {stage}: {told}")
        return state

    def models(self, chosen: Chosen) -> Iterator[tuple[str, Any]]:
        """Yield the model before any training and after each task that has ended; ValueError where one was not kept."""
        state = self._state(chosen)
        lacking = [stage for stage in state.done if not state.model(stage).is_dir()]
        if lacking or not state.done:
            gone = ", ".join(lacking) or "any task"
            raise ValueError(f"the model of {chosen.name} after {gone} was not kept: begin a run with --keep-models")
        for stage in (None, *state.done):
            strategy = self._strategy(chosen)
            strategy.open(None if stage is None else state.model(stage))
            yield stage or BEFORE, strategy.model if stage is None else strategy.whole()

    def is_done(self, chosen: Chosen) -> bool:
        """Return True where all stages of a method or bound have ended."""
        state = read_state(self.folder / chosen.name / STATE)
        return state is not None and set(self._stages(chosen)) <= set(state["done"])

    def steps(self, chosen: Chosen) -> list[int]:
        """Return the optimizer steps of each stage of a method or bound."""
        return [steps_of(len(rows), self._sized(chosen)) for rows in self._stages(chosen).values()]

    def _stages(self, chosen: Chosen) -> dict[str, Sequence[Example]]:
        """Return the stages of a method: the name of the row that each fills, and what is learned in it."""
        rows = [task.train for task in self.tasks]
        if chosen.method.bound == "at once":
            return {self.tasks[-1].name: [*chain(*rows)]}
        replays = [one for one in chosen.make() if isinstance(one, Replay)]
        return {
            task.name: replays[0].rows(task.train, rows[:index], self.seed + index) if replays else task.train
            for index, task in enumerate(self.tasks)
        }

    def _strategy(self, chosen: Chosen) -> Strategy:
        method = chosen.method
        if isinstance(method, AdapterMethod):
            # with PEFT, which the others do without
            from gsr_kernels.continual.adapter_strategy import Adapted, Balanced

            return (Balanced if method.balanced else Adapted)(self.kind, chosen, self.start, self.seed)
        # of methods that are joined each has its part, and hands on to the next
        classes = [getattr(strategies, name) for name in method.strategies] or [Strategy]
        return type("Joined", (*classes,), {})(self.kind, chosen, self.start, self.seed)

    def _state(self, chosen: Chosen) -> RunState:
        """Return the state of a method or bound; what was learned all at once is void when a task is added."""
        names = [task.name for task in self.tasks]
        matrices = {TEST: ResultMatrix(names, known=[task.name for task in self.retained])}
        if self.validated:
            matrices[VALIDATION] = ResultMatrix(names)
        for split, matrix in matrices.items():
            matrix.record(BEFORE, self._before[split])
        state = RunState(self.folder / chosen.name, matrices, self.settings.keep_models)
        if set(state.done) <= set(self._stages(chosen)):
            return state
        on_rank0(partial(remove, state.folder))
        return self._state(chosen)

    @property
    def _scored(self) -> dict[str, list[Source]]:
        """Return the tasks whose ``test`` rows are scored, of each split."""
        validation = [replace(task, test=task.validation) for task in self.validated]
        return {TEST: [*self.retained, *self.tasks]} | ({VALIDATION: validation} if validation else {})

    @cached_property
    def _before(self) -> dict[str, dict[str, float]]:
        """Return the scores of the model before any training, which is the demo's or is given; made once a seed."""
        if self.settings.demo is not None:
            from gsr_kernels.continual.demo import pretrain

            self.bar.set_description(f"seed {self.seed} · pretraining")
            rows = self.retained[0].train
            pretrain(self.kind, self.settings, rows, self.seed, Path(self.start), self._tick)
        file = self.folder / "before.json"
        scores = {split: {} for split in self._scored} | (read_state(file) or {})
        lacking = [
            task.name for split, tasks in self._scored.items() for task in tasks if task.name not in scores[split]
        ]
        if lacking:
            if file.is_file() and first():
                self.bar.write(f"seed {self.seed}  before any training: {file} lacks {', '.join(lacking)}: scored now")
            self.bar.set_description(f"seed {self.seed} · before any training")
            model = load(self.kind, self.start, self.settings.dtype, self.seed)
            for split, found in self.scores(model, self.folder / "answers", lacking).items():
                scores[split] |= found
            on_rank0(lambda: write_json(file, scores))
        return scores

    def scores(self, model: Any, folder: Path, only: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
        """Return, of each split, the model's scores on all tasks, or on some; the answers go to a folder."""
        found: dict[str, dict[str, float]] = {split: {} for split in self._scored}
        for split, tasks in self._scored.items():
            of_split = folder if split == TEST else folder / split
            for task in tasks:
                if only is None or task.name in only:
                    # as autocast trains; FSDP2's layers are wholly in bfloat16
                    with (
                        self._labelled(model, task),
                        torch.autocast(model.device.type, torch.bfloat16, enabled=self.settings.bf16),
                    ):
                        found[split][task.name] = score(
                            self.kind, model, task, self.settings.new_tokens, of_split / f"{task.name}.jsonl"
                        )
        return found

    def _labelled(self, model: Any, asked: Source) -> AbstractContextManager[object]:
        """Give a classifier the labels of the tasks up to the one that it is asked, unless it has them."""
        if not isinstance(self.kind, Classifier) or asked.name in model.config.task_labels:
            return nullcontext()
        names = [task.name for task in self.tasks]
        return self.kind.labelled(model, names[: names.index(asked.name) + 1], self.seed)

    def _sized(self, chosen: Chosen) -> RunSettings:
        """As many steps for all tasks at once as for one after the other."""
        settings = chosen.settings_of_run
        if chosen.method.bound != "at once" or settings.steps is None:
            return settings
        return replace(settings, steps=settings.steps * len(self.tasks))

    def _tick(self, steps: int, before: bool) -> None:
        if before and first():
            # the estimate of the end counts what is done now
            self.bar.initial += steps
        self.bar.update(steps)
