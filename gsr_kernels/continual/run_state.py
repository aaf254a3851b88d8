"""State of a method's run on disk, from where it goes on after a kill at any moment."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gsr_kernels.continual.metrics import ResultMatrix
from gsr_kernels.continual.ranks import on_rank0
from gsr_kernels.continual.results import Spectra
from gsr_kernels.io.atomic import replacing


class RunState:
    """Finished stages of one method: their scores, spectra and logs, and the model after each.

    Args:
        folder: of this method alone; what it holds of finished stages is read.
        empty: the matrix before any stage.
        keep_models: leave the model of every stage, not the last alone.
    """

    def __init__(self, folder: Path, empty: ResultMatrix, keep_models: bool) -> None:
        self.folder = folder
        self.matrix = empty
        self.spectra: dict[str, Spectra] = {}
        self.logs: dict[str, list[dict[str, Any]]] = {}
        self.done: list[str] = []
        self._keep_models = keep_models
        written = on_rank0(lambda: self._file.read_text(encoding="utf-8") if self._file.is_file() else None)
        if written is not None:
            data = json.loads(written)
            self.matrix = ResultMatrix.from_json(json.dumps(data["matrix"]))
            self.spectra, self.logs, self.done = data["spectra"], data["logs"], data["done"]

    def model(self, stage: str) -> Path:
        """Where the model after a stage is."""
        return self.folder / "models" / stage

    def work(self, stage: str) -> Path:
        """Where the checkpoints within a stage are."""
        return self.folder / "training" / stage

    def check_order(self, stages: Sequence[str]) -> None:
        """Raises ValueError where what is done is not how these stages begin."""
        if self.done != list(stages[: len(self.done)]):
            raise ValueError(
                f"{self._file}: {', '.join(self.done)} are done, which is no beginning of {', '.join(stages)}: give "
                "another --out"
            )

    def keep(self, stage: str, save: Callable[[Path], object]) -> None:
        """Has the model after a stage written, whole or not at all."""
        partial = self.folder / "models" / f".{stage}.partial"

        def take_its_place() -> None:
            shutil.rmtree(self.model(stage), ignore_errors=True)
            partial.rename(self.model(stage))

        on_rank0(lambda: shutil.rmtree(partial, ignore_errors=True))
        save(partial)
        on_rank0(take_its_place)

    def finish(self, stage: str, scores: dict[str, float], spectra: Spectra, log: list[dict[str, Any]]) -> None:
        """A stage is over: its checkpoints, and the model before it, are wanted no longer."""
        self.matrix.record(stage, scores)
        self.spectra[stage] = spectra
        self.logs[stage] = log
        before, self.done = self.done, [*self.done, stage]
        on_rank0(lambda: self._finish(stage, before))

    def _finish(self, stage: str, before: Sequence[str]) -> None:
        data = {"matrix": json.loads(self.matrix.to_json()), "spectra": self.spectra, "done": self.done}
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self._file) as path:
            path.write_text(json.dumps({**data, "logs": self.logs}), encoding="utf-8")
        shutil.rmtree(self.work(stage), ignore_errors=True)
        if before and not self._keep_models:
            shutil.rmtree(self.model(before[-1]), ignore_errors=True)

    @property
    def _file(self) -> Path:
        return self.folder / "state.json"
