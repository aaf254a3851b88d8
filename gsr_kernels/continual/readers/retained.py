"""Tasks that the model could do before the first one: scored after every task, never trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gsr_kernels.continual.examples import Example, Source
from gsr_kernels.continual.readers.jsonl import read_rows

# of a held-out text at most, in characters
WINDOW = 1000


def read_retained(path: Path, fits: Callable[[str], bool]) -> Source:
    """Rows of a ``.jsonl`` file, or a ``.txt`` file whose every next token is to be foretold, in windows.

    Args:
        path: of the file.
        fits: whether the model can take a window whole; one that does not fit is halved.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, a malformed row, no text.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--retain {path} is no file")
    if path.suffix == ".jsonl":
        rows = read_rows(path)
        return Source(path.stem, f"rows of {path}", (), rows)
    if path.suffix != ".txt":
        raise ValueError(f"--retain {path}: a .jsonl file of rows or a .txt file is wanted")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"--retain {path}: no UTF-8: {error.reason} at byte {error.start + 1}") from error
    windows = [part for at in range(0, len(text), WINDOW) for part in _halved(text[at : at + WINDOW], fits)]
    rows = tuple(Example("", window, goes_on=True) for window in windows if window.strip())
    if not rows:
        raise ValueError(f"--retain {path} holds no text")
    return Source(path.stem, f"the text {path}", (), rows, metric="loss")


def _halved(text: str, fits: Callable[[str], bool]) -> list[str]:
    if len(text) == 1 or fits(text):
        return [text]
    middle = len(text) // 2
    return [*_halved(text[:middle], fits), *_halved(text[middle:], fits)]
