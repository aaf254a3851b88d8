"""Encoders with a classification head over the options of all tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
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

    # the group of each label, and its text
    owner: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    labels: list[str] = field(default_factory=list)
    # the labels of each task's options, by its name
    task_labels: dict[str, dict[str, int]] = field(default_factory=dict)
    _first: dict[tuple[str, ...], int] = field(default_factory=dict)

    def choose_among(self, tasks: Iterable[tuple[str, tuple[str, ...]]]) -> None:
        """Make labels of the options of each task, by its name; equal options of two tasks are the same labels."""
        named: dict[tuple[str, ...], str] = {}
        for name, options in tasks:
            if options not in named:
                self._first[options] = sum(map(len, named))
                named[options] = name
            self.task_labels[name] = {option: self._first[options] + i for i, option in enumerate(options)}
        self.owner = torch.tensor([index for index, group in enumerate(named) for _ in group])
        count = Counter(option for group in named for option in group)
        # two labels of one text are told apart by their tasks
        self.labels = [
            option if count[option] == 1 else f"{name}: {option}" for group, name in named.items() for option in group
        ]

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
        owner = self.owner.to(logits.device)
        return logits.float().masked_fill(owner[labels].unsqueeze(1) != owner, float("-inf"))
