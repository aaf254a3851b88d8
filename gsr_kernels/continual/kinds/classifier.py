"""Encoders with a classification head, which gains the options of a task when that is learned."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DataCollatorWithPadding

from gsr_kernels.continual.examples import Example
from gsr_kernels.continual.kinds.base import Features, Kind, mean_loss


@dataclass
class Classifier(Kind):
    """A label is an index among the options of all tasks, one task after the other; see ``choose_among``.

    The task is known: a row's logits count among the options of its own task alone, in training and in scoring.
    """

    name = "classifier"
    auto = "AutoModelForSequenceClassification"
    asks = ("choice",)
    wants = "prompt"

    # the labels of each task's options, by its name
    task_labels: dict[str, dict[str, int]] = field(default_factory=dict)
    # of each group of options its first label, and the task that it came with
    _first: dict[tuple[str, ...], int] = field(default_factory=dict)
    _named: dict[tuple[str, ...], str] = field(default_factory=dict)

    def choose_among(self, tasks: Iterable[tuple[str, tuple[str, ...]]]) -> None:
        """Make labels of the options of each task, by its name; equal options of two tasks are the same labels."""
        for name, options in tasks:
            if options not in self._named:
                self._first[options] = sum(map(len, self._named))
                self._named[options] = name
            self.task_labels[name] = {option: self._first[options] + i for i, option in enumerate(options)}

    @property
    def owner(self) -> Tensor:
        """Return the number of the group of each label."""
        return torch.tensor([index for index, group in enumerate(self._named) for _ in group])

    def set_labels(self, model: Any, tasks: Sequence[str], seed: int) -> None:
        """Give the head of a model the labels of the tasks, which are first of all; see ``head``."""
        model.set_submodule(output_of(model), self.head(model, tasks, seed))
        groups = self._groups(tasks)
        count = Counter(option for options in groups for option in options)
        # two labels of one text are told apart by their tasks
        labels = [
            option if count[option] == 1 else f"{self._named[options]}: {option}"
            for options in groups
            for option in options
        ]
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {label: index for index, label in enumerate(labels)}
        model.config.task_labels = {task: self.task_labels[task] for task in tasks}
        model.num_labels = len(labels)

    @contextmanager
    def labelled(self, model: Any, tasks: Sequence[str], seed: int) -> Iterator[None]:
        """Give the head of a model the labels of the tasks for a while, which may be more than it has learned."""
        name = output_of(model)
        learned = model.get_submodule(name)
        model.set_submodule(name, self.head(model, tasks, seed))
        try:
            yield
        finally:
            model.set_submodule(name, learned)

    @torch.no_grad()
    def head(self, model: Any, tasks: Sequence[str], seed: int) -> nn.Linear:
        """Return a head for the labels of the tasks: rows that the model's has stay, others are drawn.

        The rows of a task follow from the seed and its name, so that they are the same whenever it is added.
        """
        old = model.get_submodule(output_of(model))
        groups = self._groups(tasks)
        with torch.random.fork_rng(devices=[]):
            head = nn.Linear(old.in_features, sum(map(len, groups)), old.bias is not None)
            for options in groups:
                task, first = self._named[options], self._first[options]
                rows = slice(first, first + len(options))
                part: Any = nn.Linear(old.in_features, len(options), old.bias is not None)
                if task in model.config.task_labels:
                    part.load_state_dict({key: value[rows] for key, value in old.state_dict().items()})
                else:
                    torch.manual_seed(zlib.crc32(f"head of seed {seed}, {task}".encode()))
                    # as the architecture draws a linear weight
                    part.reset_parameters()
                    model._init_weights(part)
                for key, value in part.state_dict().items():
                    head.state_dict()[key][rows] = value
        return head.to(old.weight)

    def _groups(self, tasks: Sequence[str]) -> list[tuple[str, ...]]:
        return list(dict.fromkeys(tuple(self.task_labels[task]) for task in tasks))

    def features(self, row: Example) -> Features:
        """See Kind.features; ``row.options`` is the group of its task."""
        tokens = self.tokenizer(row.prompt)["input_ids"]
        if len(tokens) > self.max_tokens:
            self.truncated.add(row)
            tokens = self.tokenizer(row.prompt, truncation=True, max_length=self.max_tokens)["input_ids"]
        label = self._first[row.options] + row.options.index(row.completion)
        return {"input_ids": tokens, "attention_mask": [1] * len(tokens), "labels": label}

    def collator(self, model: Any = None) -> Any:
        """See Kind.collator."""
        return DataCollatorWithPadding(self.tokenizer)

    def loss(self, model: Any) -> Callable[..., Tensor]:
        """See Kind.loss: cross entropy among the options of each row's task."""

        def masked(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
            among = self._among(outputs.logits, labels.clamp(min=0))
            return mean_loss(among, labels, num_items_in_batch)

        return masked

    @torch.no_grad()
    def answers(self, model: Any, rows: Sequence[Example], asked: str, new_tokens: int) -> list[str]:
        """See Kind.answers: the option with the largest logit."""
        model.eval()
        chosen = [""] * len(rows)
        for indices, batch in self.batches([self.features(row) for row in rows], model.device, self.collator()):
            labels = batch.pop("labels")
            for index, best in zip(indices, self._among(model(**batch).logits, labels).argmax(-1).tolist()):
                options = rows[index].options
                chosen[index] = options[best - self._first[options]]
        return chosen

    def _among(self, logits: Tensor, labels: Tensor) -> Tensor:
        owner = self.owner[: logits.shape[-1]].to(logits.device)
        return logits.float().masked_fill(owner[labels].unsqueeze(1) != owner, float("-inf"))


def output_of(model: Any) -> str:
    """Return the name of the last layer of a classifier's head; ValueError where that is no linear layer."""
    found = [
        name
        for name, one in model.named_modules()
        if isinstance(one, nn.Linear) and one.out_features == model.config.num_labels
    ]
    if not found:
        raise ValueError(
            f"--model: the head of {model.config.model_type} ends in no linear layer, which could gain the labels of a "
            "task: give another encoder"
        )
    return found[-1]
