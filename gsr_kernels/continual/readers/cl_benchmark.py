"""CL_Benchmark, the data of O-LoRA (arXiv 2310.14152): ``CATEGORY/TASK/{train,test,labels}.json``."""

from __future__ import annotations

from pathlib import Path

from gsr_kernels.continual.examples import Example, Source, check_apart
from gsr_kernels.continual.readers.json_rows import read_examples, read_json

# O-LoRA's appendix: the orders 1 to 3 of the Standard benchmark and 4 to 6 of the Long one
ORDERS = {
    name: tuple(tasks.split())
    for name, tasks in {
        "order1": "dbpedia amazon yahoo agnews",
        "order2": "dbpedia amazon agnews yahoo",
        "order3": "yahoo amazon agnews dbpedia",
        "long1": "MNLI CB WiC COPA QQP BoolQA RTE IMDB yelp amazon SST-2 dbpedia agnews MultiRC yahoo",
        "long2": "MultiRC BoolQA WiC MNLI CB COPA QQP RTE IMDB SST-2 dbpedia agnews yelp amazon yahoo",
        "long3": "yelp amazon MNLI CB COPA QQP RTE IMDB SST-2 dbpedia agnews yahoo MultiRC BoolQA WiC",
    }.items()
}
# the benchmark's question for each category; COPA's rows ask for themselves
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


def find(folder: Path) -> dict[str, Path]:
    """The tasks there, by name."""
    return {file.parent.name: file.parent for file in folder.glob("[!.]*/[!.]*/train.json")}


def read_task(name: str, path: Path, instructed: bool) -> Source:
    """One task.

    Raises:
        FileNotFoundError: one of its three files is missing.
        ValueError: a malformed file or row, a label that labels.json lacks, a category that has no instruction, no row
            to score by that is not learned.
    """
    category = path.parent.name
    if instructed and category not in INSTRUCTIONS:
        raise ValueError(f"{path}: no instruction for the category {category!r}; there are {', '.join(INSTRUCTIONS)}")
    labels = read_json(path / "labels.json")
    if not isinstance(labels, list) or not all(isinstance(label, str) and label for label in labels):
        raise ValueError(f"{path / 'labels.json'}: must be a list of texts")
    # the answer follows "Answer:" after a space
    options = tuple(f" {label}" if instructed else label for label in labels)

    def example(row: dict[str, str]) -> Example:
        prompt = instruct(category, labels, row["sentence"]) if instructed else row["sentence"]
        return Example(prompt, f" {row['label']}" if instructed else row["label"], options)

    keys = ("sentence", "label")
    train, test = (read_examples(path / f"{split}.json", keys, example) for split in ("train", "test"))
    check_apart(path, train, test)
    return Source(name, f"{category}: {', '.join(labels)}", train, test)


def instruct(category: str, labels: list[str], sentence: str) -> str:
    """The prompt of a row."""
    question = INSTRUCTIONS[category]
    asked = f"{question} Choose one from the option.\nOption: {', '.join(labels)} \n" if question else ""
    return f"{asked}{sentence}\nAnswer:"
