"""Trainer of a task, its rows, and what watches it."""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainerState

from gsr_kernels.continual.kinds import IGNORED
from gsr_kernels.continual.ranks import gathered, world
from gsr_kernels.continual.stop import told_to_stop


class EpochSampler(Dataset):
    """Rows in the order of the steps: all of them in each epoch, every time shuffled anew.

    An epoch ends with a step of as many rows as the others, ``batch``: what is lacking is filled with a row whose
    labels count for nothing. So a step is the same on any number of processes.
    """

    def __init__(self, rows: Sequence[dict[str, Any]], batch: int, steps: int, seed: int) -> None:
        self.rows = rows
        shortest = min(rows, key=lambda row: len(row["input_ids"]))
        labels = shortest["labels"]
        self._filling = {**shortest, "labels": [IGNORED] * len(labels) if isinstance(labels, list) else IGNORED}
        self._order: list[int | None] = []
        for epoch in range(steps):
            if len(self._order) < batch * steps:
                generator = torch.Generator().manual_seed(seed + epoch)
                self._order += torch.randperm(len(rows), generator=generator).tolist()
                self._order += [None] * (-len(self._order) % batch)
        del self._order[batch * steps :]

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._order[index]
        return self._filling if row is None else self.rows[row]


class TaskTrainer(Trainer):
    """Trainer that takes the rows as ``EpochSampler`` has them; a new head may learn at a rate of its own."""

    head_lr: float | None = None

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Sampler:
        rows: Any = self.train_dataset
        return SequentialSampler(rows)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """Learn nothing of filling alone; one process among several takes it, since the others wait for it."""
        labels = inputs["labels"]
        if world() == 1 and not (labels != IGNORED).any():
            return torch.zeros((), device=labels.device)
        return super().training_step(model, inputs, *args, **kwargs)

    def _save_rng_state(self, output_dir: str) -> None:
        """Save every rank's, before the first one removes the older checkpoint."""
        super()._save_rng_state(output_dir)
        if world() > 1:
            dist.barrier()

    def create_optimizer(self, model: Any = None) -> Optimizer:
        """Return the Trainer's own, with the head in groups of its own, decayed or not as they were."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if self.head_lr is not None and fresh:
            model = self.accelerator.unwrap_model(self.model)
            encoder = set(model.base_model.parameters())
            for group in list(optimizer.param_groups):
                head = [parameter for parameter in group["params"] if parameter not in encoder]
                if head:
                    group["params"] = [parameter for parameter in group["params"] if parameter in encoder]
                    optimizer.add_param_group({**group, "params": head, "lr": self.head_lr})
        return optimizer


class DivergenceError(FloatingPointError):
    """Training has come to no numbers; all ranks see the same."""


class Watch(TrainerCallback):
    """Callback that moves the run's bar, and stops what diverges."""

    def __init__(self, tick: Callable[[int, bool], object], lr: float, show: Callable[[float], object]) -> None:
        self._tick = tick
        self._lr = lr
        self._show = show

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Count the steps of a checkpoint, which were taken before."""
        _return_free_memory()
        self._tick(state.global_step, True)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Count one more step; where the run is told to end, it is the last, and kept."""
        self._tick(1, False)
        if told_to_stop():
            control.should_save = control.should_training_stop = True

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Check and show the loss since the last record."""
        if not math.isfinite(logs.get("loss", 0.0)):
            raise DivergenceError(f"the loss is {logs['loss']} at step {state.global_step}: lr {self._lr} is too high")
        if "loss" in logs:
            self._show(logs["loss"])


def _return_free_memory() -> None:
    # glibc keeps what the decompositions of a method's bases took, twice the bases' size was seen
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def check_weights(model: nn.Module, lr: float) -> None:
    """Raise FloatingPointError where training has left a weight NaN or Inf, which the last losses need not tell."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # of sharded weights each rank has its shards
    shards = [getattr(parameter, "_local_tensor", parameter) for parameter in trained]
    if not all(gathered(all(bool(shard.isfinite().all()) for shard in shards))):
        raise DivergenceError(f"weights are not finite at the end of a task: lr {lr} is too high")
