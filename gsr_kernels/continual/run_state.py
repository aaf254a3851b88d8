"""State of a method's run on disk, from where it goes on after a kill at any moment."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gsr_kernels.continual.folder import write_json
from gsr_kernels.continual.metrics import ResultMatrix, Spectra
from gsr_kernels.continual.ranks import on_rank0

STATE = "state.json"
# the splits that are scored, and their names in the file
TEST, VALIDATION = "test", "validation"
KEYS = {TEST: "matrix", VALIDATION: "validation"}
# of each split the scores of its tasks
Scores = Mapping[str, Mapping[str, float]]


@dataclass
class RunState:
    """Finished stages of one method, read from its folder: scores, spectra, logs, and the model after each."""

    folder: Path
    # of each split that is scored, the test's under ``TEST``
    matrices: dict[str, ResultMatrix]
    keep_models: bool
    spectra: dict[str, Spectra] = field(default_factory=dict)
    logs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        data = read_state(self.folder / STATE)
        if data is not None:
            for split, matrix in self.matrices.items():
                # tasks may have been added since
                matrix.take(ResultMatrix.from_dict(data[KEYS[split]]))
            self.spectra, self.logs, self.done = data["spectra"], data["logs"], data["done"]

    @property
    def losses(self) -> dict[str, list[tuple[int, float]]]:
        """Return the steps and losses of each stage that are in its log."""
        return {
            stage: [(each["step"], each["loss"]) for each in log if each.get("loss") is not None]
            for stage, log in self.logs.items()
        }

    def model(self, stage: str) -> Path:
        """Return the folder of the model after a stage."""
        return self.folder / "models" / stage

    def work(self, stage: str) -> Path:
        """Return the folder of the checkpoints within a stage."""
        return self.folder / "training" / stage

    def lacking(self, stage: str) -> list[str]:
        """Return the tasks that the model after a stage was not scored on."""
        return [*dict.fromkeys(task for matrix in self.matrices.values() for task in matrix.lacking(stage))]

    def finish(self, stage: str, scores: Scores, spectra: Spectra, log: list[dict[str, Any]]) -> None:
        """End a stage: its checkpoints, and the model before it, are wanted no longer."""
        self._record(stage, scores)
        self.spectra[stage] = spectra
        self.logs[stage] = log
        before, self.done = self.done, [*self.done, stage]

        def finish() -> None:
            self._write()
            remove(self.work(stage))
            if before and not self.keep_models:
                remove(self.model(before[-1]))

        on_rank0(finish)

    def add(self, stage: str, scores: Scores) -> None:
        """Add scores to a stage that has ended."""
        self._record(stage, scores)
        on_rank0(self._write)

    def _record(self, stage: str, scores: Scores) -> None:
        for split, of in scores.items():
            self.matrices[split].record(stage, of)

    def _write(self) -> None:
        matrices = {KEYS[split]: matrix.to_dict() for split, matrix in self.matrices.items()}
        write_json(self.folder / STATE, {**matrices, "spectra": self.spectra, "done": self.done, "logs": self.logs})


def remove(folder: Path) -> None:
    """Remove a folder, from the view of others at once, where it is there."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        folder.rename(partial)
    shutil.rmtree(partial, ignore_errors=True)


def keep_whole(folder: Path, save: Callable[[Path], object]) -> None:
    """Have a folder written, whole or not at all; all ranks call ``save``."""
    partial = folder.with_name(f".{folder.name}.partial")

    def take_its_place() -> None:
        # as the umask has it: safetensors writes for the owner alone
        mode = partial.stat().st_mode & 0o666
        for path in partial.rglob("*"):
            if path.is_file():
                path.chmod(mode)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)

    on_rank0(lambda: shutil.rmtree(partial, ignore_errors=True))
    save(partial)
    on_rank0(take_its_place)


def read_state(file: Path) -> Any:
    """Return, on all ranks, what a JSON file holds; None where there is none."""
    written = on_rank0(lambda: file.read_text(encoding="utf-8") if file.is_file() else None)
    return None if written is None else json.loads(written)
