"""Training on rows and scoring on rows: the same for pretraining, every task and every method."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import AdamW, Optimizer

from gsr_kernels.continual.library import Row
from gsr_kernels.continual.model import MARK, ByteDecoder

# what cross_entropy leaves out: the prompt and the padding
IGNORED = -100
WARM_UP = 0.05
MAX_NORM = 1.0


def adamw(model: ByteDecoder, lr: float) -> AdamW:
    """The optimizer of pretraining and of every method."""
    return AdamW(model.parameters(), lr=lr)


def collate(rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Rows as tokens and targets ``[rows, length]``; a target is the byte to come, of the completion alone."""
    length = max(len(prompt) + len(completion) for prompt, completion in rows)
    tokens = torch.zeros(len(rows), length, dtype=torch.int64)
    targets = torch.full_like(tokens, IGNORED)
    for i, (prompt, completion) in enumerate(rows):
        whole = torch.tensor([*prompt, MARK, *completion])
        tokens[i, : len(whole) - 1] = whole[:-1]
        targets[i, len(prompt) : len(whole) - 1] = whole[len(prompt) + 1 :]
    return tokens, targets


def batches(rows: Sequence[Row], size: int, order: str) -> Iterator[list[Row]]:
    """Batches without end: every row once, in the order that the text ``order`` seeds, then again in another."""
    generator = random.Random(order)
    waiting: list[Row] = []
    while True:
        while len(waiting) < size:
            waiting += generator.sample(rows, len(rows))
        yield waiting[:size]
        waiting = waiting[size:]


def loss(model: ByteDecoder, rows: Sequence[Row]) -> Tensor:
    """The mean cross entropy of the completions' bytes."""
    tokens, targets = collate(rows)
    return F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


def train(
    model: ByteDecoder,
    optimizer: Optimizer,
    rows: Sequence[Row],
    *,
    steps: int,
    batch: int,
    lr: float,
    order: str,
    tick: Callable[[], object],
) -> None:
    """Trains for ``steps``, the rate rising over the first twentieth and falling to zero; ``tick()`` after each.

    Raises:
        FloatingPointError: the loss is no longer finite.
    """
    warm_up = max(1, round(WARM_UP * steps))
    for step, chosen in zip(range(steps), batches(rows, batch, order)):
        for group in optimizer.param_groups:
            group["lr"] = lr * min((step + 1) / warm_up, (steps - step) / max(1, steps - warm_up))
        error = loss(model, chosen)
        if not error.isfinite():
            raise FloatingPointError(f"the loss is {error.item()} at step {step + 1}: lr {lr} is too high")
        optimizer.zero_grad()
        error.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        tick()


@torch.no_grad()
def score(model: ByteDecoder, rows: Sequence[Row], batch: int = 64) -> float:
    """The share of the completions' bytes that the model predicts right, given all bytes before, in percent."""
    right = total = 0
    for start in range(0, len(rows), batch):
        tokens, targets = collate(rows[start : start + batch])
        asked = targets != IGNORED
        right += int((model(tokens).argmax(-1) == targets)[asked].sum())
        total += int(asked.sum())
    return 100 * right / total
