"""TRACE (arXiv 2310.06762): ``TASK/{train,test}.json``, rows ``{"prompt", "answer"}``."""

from __future__ import annotations

from pathlib import Path

from gsr_kernels.continual.examples import Example, Source, check_apart
from gsr_kernels.continual.readers.json_rows import read_examples

# the benchmark's order, and what each task is scored by
METRICS = {
    "C-STANCE": "exact",
    "FOMC": "exact",
    "MeetingBank": "rouge-l",
    "Py150": "edit",
    "ScienceQA": "letter",
    "NumGLUE-cm": "exact",
    "NumGLUE-ds": "exact",
    "20Minuten": "sari",
}
ORDERS = {"trace": tuple(METRICS)}


def find(folder: Path) -> dict[str, Path]:
    """The tasks there, by name."""
    return {file.parent.name: file.parent for file in folder.glob("[!.]*/train.json")}


def read_task(name: str, path: Path, instructed: bool) -> Source:
    """One task; its prompts are complete, and the answer follows on a line of its own.

    Raises:
        FileNotFoundError: one of its two files is missing.
        ValueError: a malformed file or row, no row to score by that is not learned.
    """

    def example(row: dict[str, str]) -> Example:
        return Example(f"{row['prompt']}\n", row["answer"])

    keys = ("prompt", "answer")
    train, test = (read_examples(path / f"{split}.json", keys, example) for split in ("train", "test"))
    check_apart(path, train, test)
    return Source(name, "of TRACE", train, test, metric=METRICS.get(name))
