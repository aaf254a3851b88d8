"""The layouts that data comes in: ``read`` finds out which."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gsr_kernels.continual.examples import Example, Source
from gsr_kernels.continual.metrics import BEFORE
from gsr_kernels.continual.row_files import example_of, read_json, read_rows, texts

# TRACE (arXiv 2310.06762), in its order: what each task is scored by
TRACE = {
    "C-STANCE": "exact",
    "FOMC": "exact",
    "MeetingBank": "rouge-l",
    "Py150": "edit",
    "ScienceQA": "letter",
    "NumGLUE-cm": "exact",
    "NumGLUE-ds": "exact",
    "20Minuten": "sari",
}
# CL_Benchmark's, by the appendix of O-LoRA (arXiv 2310.14152): the orders 1 to 3 of its Standard benchmark and 4 to 6
# of its Long one
CL_BENCHMARK = {
    "order1": "dbpedia amazon yahoo agnews",
    "order2": "dbpedia amazon agnews yahoo",
    "order3": "yahoo amazon agnews dbpedia",
    "long1": "MNLI CB WiC COPA QQP BoolQA RTE IMDB yelp amazon SST-2 dbpedia agnews MultiRC yahoo",
    "long2": "MultiRC BoolQA WiC MNLI CB COPA QQP RTE IMDB SST-2 dbpedia agnews yelp amazon yahoo",
    "long3": "yelp amazon MNLI CB COPA QQP RTE IMDB SST-2 dbpedia agnews yahoo MultiRC BoolQA WiC",
}
ORDERS = {name: tuple(tasks.split()) for name, tasks in CL_BENCHMARK.items()} | {"trace": tuple(TRACE)}
# CL_Benchmark's question for each category; COPA's rows ask for themselves
INSTRUCTIONS = {
    "NLI": 'What is the logical relationship between the "sentence 1" and the "sentence 2"?',
    "QQP": 'Whether the "first sentence" and the "second sentence" have the same meaning?',
    "SC": "What is the sentiment of the following paragraph?",
    "TC": "What is the topic of the following paragraph?",
    "BoolQA": "According to the following passage, is the question true or false?",
    "MultiRC": "According to the following passage and question, is the candidate answer true or false?",
    "WiC": "Given a word and two sentences, whether the word is used with the same sense in both sentence?",
    "COPA": "",
}
# of a held-out text at most, in characters
WINDOW = 1000


@dataclass(frozen=True)
class Read:
    """The tasks in the order of training, and those of a named order that the copy lacks."""

    sources: tuple[Source, ...]
    lacking: tuple[str, ...] = ()


def read(folder: Path, order: str | None = None, partial: bool = False, instructed: bool = True) -> Read:
    """Read the tasks of a folder: of JSON lines, or in the CL_Benchmark or the TRACE layout.

    Args:
        order: the name of a published order, or the tasks' names with commas; None: all, in the order of their names.
        partial: go on without those tasks of a published order that the folder lacks.
        instructed: put the benchmark's instruction around a row where it has one.

    Raises FileNotFoundError for a folder or a file of a task that is missing, ValueError for unknown or lacking tasks,
    a malformed row, and rows to score by that are all learned.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"--data {folder} is no folder")
    files = {file.stem: file for file in folder.glob("[!.]*.jsonl")}
    folders = {file.parent.name: file.parent for file in folder.glob("[!.]*/train.jsonl")}
    if twice := sorted(files.keys() & folders.keys()):
        raise ValueError(f"{folder} holds {twice[0]}.jsonl and {twice[0]}/train.jsonl, two tasks of one name")
    benchmark = {file.parent.name: file.parent for file in folder.glob("[!.]*/[!.]*/train.json")}
    trace = {file.parent.name: file.parent for file in folder.glob("[!.]*/train.json")}
    layouts = ((files | folders, _lines), (benchmark, _benchmark(instructed)), (trace, _trace))
    # the first that finds a task
    found, read_task = next((layout for layout in layouts if layout[0]), layouts[0])
    if not found:
        raise FileNotFoundError(
            f"--data {folder} holds no task. It must hold NAME.jsonl files, NAME/train.jsonl with NAME/test.jsonl, "
            "CATEGORY/NAME/{train,test,labels}.json (CL_Benchmark) or NAME/{train,test}.json (TRACE)"
        )
    names, lacking = choose(sorted(found), order, partial)
    if BEFORE in names:
        raise ValueError(f"--data {folder}: no task may be called {BEFORE!r}, the report's own name; call it otherwise")
    return Read(tuple(read_task(name, found[name]) for name in names), lacking)


def choose(there: Sequence[str], order: str | None, partial: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the tasks to train on, and those lacking; see ``read``. Names are those that are there, in any case."""
    if order is None:
        return tuple(there), ()
    spelled = {name.lower(): name for name in there}
    wanted = ORDERS[order] if order in ORDERS else tuple(name.strip() for name in order.split(","))
    lacking = tuple(name for name in wanted if name.lower() not in spelled)
    if lacking and order not in ORDERS:
        raise ValueError(
            f"--order {order}: unknown {', '.join(map(repr, lacking))}. The data has {', '.join(there)}; published "
            f"orders are {', '.join(ORDERS)}"
        )
    if lacking and not partial:
        raise ValueError(
            f"--order {order} has {len(wanted)} tasks, and this copy of the data lacks {', '.join(lacking)}: add them, "
            "or go on without them by --partial"
        )
    names = tuple(spelled[name.lower()] for name in wanted if name not in lacking)
    if len(set(names)) < len(names):
        raise ValueError(f"--order {order} names a task twice")
    if not names:
        raise ValueError(f"--order {order}: this copy of the data has none of its tasks; it has {', '.join(there)}")
    return names, lacking


def read_retained(path: Path, fits: Callable[[str], bool]) -> Source:
    """Read what the model could do before: rows of a ``.jsonl`` file, or a ``.txt`` in windows that ``fits`` takes.

    It is scored after every task and never trained on. Of a text every next token is to be foretold.

    Raises FileNotFoundError, and ValueError for another kind of file, a malformed row, no text.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--retain {path} is no file")
    if path.suffix == ".jsonl":
        return Source(path.stem, f"rows of {path}", (), read_rows(path, example_of))
    if path.suffix != ".txt":
        raise ValueError(f"--retain {path}: a .jsonl file of rows or a .txt file is wanted")
    try:
        text = path.read_text(encoding="utf-8-sig")
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


def _lines(name: str, path: Path) -> Source:
    about = f"rows of {path}"
    if path.is_dir():
        return Source(name, about, *_halves(path, "jsonl", example_of))
    rows = read_rows(path, example_of)
    if len(set(rows)) < 2:
        raise ValueError(f"{path}: needs a row to learn and one to score, has 1 distinct")
    return Source(name, about, rows)


def _benchmark(instructed: bool) -> Callable[[str, Path], Source]:
    def read_task(name: str, path: Path) -> Source:
        category = path.parent.name
        if instructed and category not in INSTRUCTIONS:
            raise ValueError(
                f"{path}: no instruction for the category {category!r}; there are {', '.join(INSTRUCTIONS)}"
            )
        labels = read_json(path / "labels.json")
        if not isinstance(labels, list) or not all(isinstance(label, str) and label for label in labels):
            raise ValueError(f"{path / 'labels.json'}: must be a list of texts")
        question = INSTRUCTIONS.get(category)
        asked = f"{question} Choose one from the option.\nOption: {', '.join(labels)} \n" if question else ""
        # the answer follows "Answer:" after a space
        before, behind, space = (asked, "\nAnswer:", " ") if instructed else ("", "", "")
        options = tuple(space + label for label in labels)

        def example(row: Any) -> Example:
            sentence, label = texts(row, "sentence", "label")
            return Example(f"{before}{sentence}{behind}", space + label, options)

        return Source(name, f"{category}: {', '.join(labels)}", *_halves(path, "json", example))

    return read_task


def _trace(name: str, path: Path) -> Source:
    def example(row: Mapping[str, Any]) -> Example:
        prompt, answer = texts(row, "prompt", "answer")
        # prompts are complete, and the answer follows on a line of its own
        return Example(f"{prompt}\n", answer)

    return Source(name, "of TRACE", *_halves(path, "json", example), metric=TRACE.get(name))


def _halves(
    path: Path, suffix: str, example: Callable[[Any], Example]
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    train, test = (read_rows(path / f"{half}.{suffix}", example) for half in ("train", "test"))
    if set(test) <= set(train):
        raise ValueError(
            f"{path}: every row to score by is a row to learn too: a score would tell what was learned by heart"
        )
    return train, test
