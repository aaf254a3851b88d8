"""Base of the three kinds of model: rows into features, features into batches, batches into answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from gsr_kernels.continual.evaluators import Answer
from gsr_kernels.continual.examples import Example

Features = dict[str, Any]

# a label that no loss counts
IGNORED = -100


def mean_loss(logits: Tensor, labels: Tensor, items: Any = None) -> Tensor:
    """Cross entropy of ``logits [.., classes]`` summed over the ``labels [..]`` that count, divided by their number,
    ``items`` in the whole step, so that the step is the same however its rows are batched and shared out.
    """
    items = (labels != IGNORED).sum() if items is None else items
    total = F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum")
    return total / max(items, 1)


@dataclass
class Kind(ABC):
    """Kind of model, with its tokenizer, which has a padding token."""

    name: ClassVar[str]
    # the class of transformers that loads it
    auto: ClassVar[str]
    asks: ClassVar[tuple[str, ...]]
    # the part of a row without which there is nothing to learn
    wants: ClassVar[str]

    tokenizer: Any
    # of a row; longer ones are cut
    max_tokens: int
    # rows at a time, when answers are asked for
    batch: int = 32
    # that the model has for a text, and tokens that it knows; None: no such limit
    positions: int | None = None
    vocabulary: int | None = None
    # called with the number of rows answered
    tick: Callable[[int], object] = lambda rows: None
    # the rows whose prompt, or whose completion, was too long
    truncated: set[Example] = field(default_factory=set)
    truncated_completions: set[Example] = field(default_factory=set)

    @abstractmethod
    def features(self, row: Example) -> Features:
        """Return a row as the model is trained on it."""

    @abstractmethod
    def answers(self, model: Any, rows: Sequence[Example], asked: str, new_tokens: int) -> list[Answer]:
        """Answer each row: ``asked`` is one of ``asks``, a text has at most so many tokens."""

    def loss(self, model: Any) -> Callable[..., Tensor]:
        """Return the Trainer's ``compute_loss_func``; see ``mean_loss``."""
        # many models' own takes the mean of every micro-batch, which is NaN where it is all filling
        return lambda outputs, labels, num_items_in_batch=None: mean_loss(outputs.logits, labels, num_items_in_batch)

    @abstractmethod
    def collator(self, model: Any = None) -> Any:
        """Make features a padded batch; of ``model``, if it has a decoder of its own, that one's input too."""

    def batches(
        self, features: Sequence[Features], device: torch.device, collate: Callable[[list[Features]], Any]
    ) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """Yield batches of rows of like lengths, with their indices, on the device."""
        order = sorted(range(len(features)), key=lambda index: len(features[index]["input_ids"]))
        for start in range(0, len(order), self.batch):
            indices = order[start : start + self.batch]
            batch = collate([features[index] for index in indices])
            yield indices, {key: value.to(device) for key, value in batch.items()}
            self.tick(len(indices))
