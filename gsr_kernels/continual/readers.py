"""The layouts that data comes in: ``read`` finds out which."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gsr_kernels.continual.examples import Example, Source
from gsr_kernels.continual.formats import example_of, texts, with_labels
from gsr_kernels.continual.metrics import BEFORE
from gsr_kernels.continual.row_files import READERS, read_json, read_rows, read_saved

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
# of a task by its name and the file that it is known by
Reader = Callable[[str, Path], Source]
# names of a split that chooses among settings
VALIDATION = ("validation", "valid", "val", "dev", "eval")
# what save_to_disk writes of a dataset, and of one in splits
SAVED = ("state.json", "dataset_dict.json")
# what MNLI has for a row on which its annotators did not agree
NO_LABEL = "-"
# of a held-out text at most, in characters
WINDOW = 1000


@dataclass(frozen=True)
class Read:
    """The tasks in the order of training, and those of a named order that the copy lacks."""

    sources: tuple[Source, ...]
    lacking: tuple[str, ...] = ()


def read(folder: Path, order: str | None = None, partial: bool = False, instructed: bool = True) -> Read:
    """Read the tasks of a folder: files of rows, saved datasets, or the CL_Benchmark layout.

    Args:
        order: the name of a published order, or the tasks' names with commas; None: all, in the order of their names,
            in which task2 comes before task10.
        partial: go on without those tasks of a published order that the folder lacks.
        instructed: put the benchmark's instruction around a row where it has one.

    Raises FileNotFoundError for a folder or a file of a task that is missing, ValueError for unknown or lacking tasks,
    malformed rows, and rows to score by that are all learned.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"--data {folder} is no folder")
    if (folder / SAVED[0]).is_file() or (folder / SAVED[1]).is_file():
        raise ValueError(f"--data {folder} is a saved dataset, which is one task: give the folder that it lies in")
    trains = [f"train{suffix}" for suffix in READERS]
    layouts: list[tuple[str, Reader]] = [
        *((f"[!.]*{suffix}", _one_file) for suffix in READERS),
        *((f"[!.]*/{name}", _files) for name in trains),
        *((f"[!.]*/{name}", _saved) for name in SAVED),
    ]
    files = [(file, read_task) for pattern, read_task in layouts for file in folder.glob(pattern)]
    # by a task's name the file that it is known by, and what reads it
    found: dict[str, tuple[Path, Reader]] = {}
    for file, read_task in files or [(file, _benchmark(instructed)) for file in folder.glob("[!.]*/[!.]*/train.json")]:
        name = file.stem if read_task is _one_file else file.parent.name
        if name in found:
            both = " and ".join(str(each.relative_to(folder)) for each in (found[name][0], file))
            raise ValueError(f"{folder} holds {both}, two tasks of one name")
        found[name] = file, read_task
    if not found:
        raise FileNotFoundError(
            f"--data {folder} holds no task. It must hold NAME.jsonl files, or .json, .csv, .parquet; NAME/train.jsonl "
            "with NAME/test.jsonl; datasets saved to NAME; or CATEGORY/NAME/{train,test,labels}.json (CL_Benchmark)"
        )
    names, lacking = choose(sorted(found, key=_natural), order, partial)
    if BEFORE in names:
        raise ValueError(f"--data {folder}: no task may be called {BEFORE!r}, the report's own name; call it otherwise")
    return Read(tuple(found[name][1](name, found[name][0]) for name in names), lacking)


def _natural(name: str) -> list[str | int]:
    """Return a key that sorts numbers within names by their value."""
    return [int(part) if index % 2 else part for index, part in enumerate(re.split(r"(\d+)", name))]


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
    """Read what the model could do before: a file of rows, or a ``.txt`` in windows that ``fits`` takes.

    It is scored after every task and never trained on. Of a text every next token is to be foretold.

    Raises FileNotFoundError, and ValueError for another kind of file, a malformed row, no text.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--retain {path} is no file")
    if path.suffix in READERS:
        return Source(path.stem, f"rows of {path}", (), with_labels(path, read_rows(path, example_of))[0])
    if path.suffix != ".txt":
        raise ValueError(f"--retain {path}: a file of rows, {', '.join(READERS)}, or a .txt file is wanted")
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


def _one_file(name: str, file: Path) -> Source:
    return _checked(name, file, {"train": read_rows(file, example_of)})


def _files(name: str, file: Path) -> Source:
    metric = TRACE.get(name) if file.suffix == ".json" else None
    return _checked(name, file.parent, _splits(file, example_of), metric)


def _splits(file: Path, example: Callable[[Any], Example | None]) -> dict[str, tuple[Example, ...]]:
    """Return the rows to learn, those of the test beside them, and those of validation where there are any."""
    there = {other.stem for other in file.parent.glob(f"*{file.suffix}")}
    names = ["train", "test", *there.intersection(VALIDATION)]
    return {name: read_rows(file.with_stem(name), example) for name in names}


def _saved(name: str, file: Path) -> Source:
    splits = read_saved(file.parent, example_of)
    if "train" not in splits:
        raise ValueError(f"{file.parent} has the splits {', '.join(splits)}: call one of them train, and one test")
    more = [split for split in splits if split not in ("train", "test", *VALIDATION)]
    return _checked(name, file.parent, splits, about=f", without its {', '.join(more)}" if more else "")


def _checked(
    name: str, path: Path, splits: Mapping[str, Sequence[Example]], metric: str | None = None, about: str = ""
) -> Source:
    """Return a task of rows that lie at a path; ValueError where there is nothing to score by that is not learned."""
    chooses = _validation(path, splits)
    train, test, validation = with_labels(path, *(splits.get(split, ()) for split in ("train", "test", chooses)))
    if not test and len(set(train)) < 2:
        raise ValueError(f"{path}: needs a row to learn and one to score, has 1 distinct")
    for rows in (test, validation):
        if rows and set(rows) <= set(train):
            raise ValueError(
                f"{path}: every row to score by is a row to learn too: a score would tell what was learned by heart"
            )
    return Source(name, f"rows of {path}{about}", train, test, metric, validation)


def _validation(path: Path, splits: Collection[str]) -> str:
    found = [name for name in VALIDATION if name in splits]
    if len(found) > 1:
        raise ValueError(f"{path} has the splits {' and '.join(found)}, and one alone is for validation: take one away")
    return found[0] if found else VALIDATION[0]


def _benchmark(instructed: bool) -> Reader:
    def read_task(name: str, file: Path) -> Source:
        path = file.parent
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

        unlabelled: list[str] = []

        def example(row: Any) -> Example | None:
            sentence, label = texts(row, "sentence", "label")
            if label == NO_LABEL and label not in labels:
                unlabelled.append(sentence)
                return None
            return Example(f"{before}{sentence}{behind}", space + label, options)

        splits = _splits(file, example)
        left = f"; left out for want of a gold label: {len(unlabelled)} rows" if unlabelled else ""
        return replace(_checked(name, path, splits), about=f"{category}: {', '.join(labels)}{left}")

    return read_task
