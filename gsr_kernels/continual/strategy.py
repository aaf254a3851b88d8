"""Strategies of learning a task, around the Trainer, on the weights themselves."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from transformers import Trainer

from gsr_kernels.continual.baselines import LwF, Replay
from gsr_kernels.continual.choose import Chosen
from gsr_kernels.continual.kinds import IGNORED, Kind
from gsr_kernels.continual.methods import EWC_ROWS
from gsr_kernels.continual.models import load, save
from gsr_kernels.continual.ranks import on_rank0
from gsr_kernels.continual.settings import RunSettings
from gsr_kernels.integrations.transformers import attach_to
from gsr_kernels.methods import EWC, LwFOwn, ModelMethod, TaskMethod

# a file, and a directory of the shards
BASES, SHARDS = "bases.safetensors", "bases"
CONSOLIDATED = "ewc.safetensors"
# rows of a task on which a method measures the model
MEASURED_ROWS = 32
# what acts by a class of its own below, or by the rows of a task
ELSEWHERE = (EWC, LwF, LwFOwn, Replay)


@dataclass
class Strategy:
    """Strategy that trains and keeps the model itself: ``open`` once, then for every task ``begin``, ``prepare``,
    ``save`` and ``whole``, in this order.
    """

    kind: Kind
    chosen: Chosen
    # the model before all tasks
    start: str | Path
    # of what the model's checkpoint lacks
    seed: int
    # the task that is learned, counted from 0, and their number
    task: int = field(default=0, init=False)
    tasks: int = field(default=1, init=False)
    # what the Trainer trains, None before ``open``
    model: Any = field(default=None, init=False)

    @property
    def settings(self) -> RunSettings:
        """Return the run's settings, as the method has them."""
        return self.chosen.settings_of_run

    @property
    def lr(self) -> float:
        """Return the rate of the optimizer."""
        return self.settings.lr

    def open(self, folder: Path | None) -> None:
        """Load the model, whole, as ``save`` wrote it after a task, or as it is before any."""
        self.model = load(self.kind, folder or self.start, self.settings.dtype, self.seed, folder is not None)

    def begin(self) -> None:
        """Begin a task; bases are taken when its Trainer makes its optimizer."""

    def prepare(self, trainer: Trainer, folder: Path) -> None:
        """Ready the Trainer, also to load its last checkpoint alone; what is put into the folder stays there."""
        method: Any = self.chosen.method
        made = [one for one in self.chosen.make() if type(one) not in ELSEWHERE]
        acts = [one for one in (self._of_task(trainer, each) for each in made) if one is not None]
        whole = [one for one in acts if isinstance(one, ModelMethod)]
        acts = [one for one in acts if not isinstance(one, ModelMethod)]
        if whole:
            attach_to(trainer, whole)
        if acts:
            folder.mkdir(parents=True, exist_ok=True)
            bases = folder / (SHARDS if self.settings.fsdp else BASES)
            settings = {name: getattr(self.settings, name) for name in method.of_bases}
            attach_to(trainer, method=acts, bases=bases, **settings)

    def _made(self, kind: type) -> Any:
        """Return what is made of the run's settings of one class."""
        return next(one for one in self.chosen.make() if type(one) is kind)

    def _of_task(self, trainer: Trainer, acts: Any) -> Any:
        """Return what acts in this task: some measure the model first, on single rows, without padding."""
        if not isinstance(acts, TaskMethod):
            return acts
        dataset: Any = trainer.train_dataset
        batches = (batch_of(trainer, self.model, [row])[0] for row in dataset.rows[:MEASURED_ROWS])
        self.model.eval()
        # all ranks have the same
        return on_rank0(lambda: acts.for_task(self.model, batches, self.task, self.tasks))

    def save(self, folder: Path) -> None:
        """Have the first rank write what ``open`` reads, with the tokenizer; all ranks call it."""
        # in the host memory of the first rank
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        sharded = isinstance(self.model, FSDPModule)
        gathered = get_model_state_dict(self.model, options=options) if sharded else None
        save(self.kind, self.model, folder, gathered)

    def whole(self) -> Any:
        """Return a model that computes what has been learned."""
        return self.model


class Consolidated(Strategy):
    """EWC: the weights are held where earlier tasks needed them; what it holds is kept beside the model."""

    def open(self, folder: Path | None) -> None:
        """See Strategy.open."""
        super().open(folder)
        self._ewc = self._made(EWC)
        if folder is not None:
            self._ewc.load_state_dict(load_file(folder / CONSOLIDATED, device=str(self.model.device)))

    def begin(self) -> None:
        """See Strategy.begin: a classifier's new labels are not held."""
        for name, parameter in self.model.named_parameters():
            for kept in (self._ewc.fisher, self._ewc.anchors):
                if name in kept and kept[name].shape != parameter.shape:
                    new = kept[name].new_zeros(len(parameter) - len(kept[name]), *parameter.shape[1:])
                    kept[name] = torch.cat((kept[name], new))

    def prepare(self, trainer: Trainer, folder: Path) -> None:
        """See Strategy.prepare."""
        super().prepare(trainer, folder)
        attach_to(trainer, self._ewc)
        rows: Any = trainer.train_dataset
        self._rows, self._loss = rows.rows[:EWC_ROWS], batch_loss(self.kind, trainer)

    def save(self, folder: Path) -> None:
        """See Strategy.save: the task is learned, and consolidated from its first rows."""
        self.model.eval()
        self._ewc.bind(self.model).finish_task([[row] for row in self._rows], self._loss)
        super().save(folder)
        on_rank0(lambda: save_file(self._ewc.state_dict(), folder / CONSOLIDATED))


class Distilled(Strategy):
    """LwF: a copy of the model as it is before the task answers every batch as well."""

    def prepare(self, trainer: Trainer, folder: Path) -> None:
        """See Strategy.prepare."""
        super().prepare(trainer, folder)
        lwf = self._made(LwF)
        before, seen = copy.deepcopy(self.model).eval().requires_grad_(False), {}
        self._hook = self.model.register_forward_pre_hook(lambda _, args, inputs: seen.update(inputs), with_kwargs=True)

        def term(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
            with torch.no_grad():
                logits = before(**seen).logits
            return lwf.term(self.kind, outputs.logits, logits, labels, num_items_in_batch)

        _add(trainer, term)

    def save(self, folder: Path) -> None:
        """See Strategy.save."""
        self._hook.remove()
        super().save(folder)


class Rehearsed(Strategy):
    """LwF on text that the model writes before the task."""

    def prepare(self, trainer: Trainer, folder: Path) -> None:
        """See Strategy.prepare: the term is a part of the loss, so that its gradient is clipped with the task's."""
        super().prepare(trainer, folder)
        own = self._made(LwFOwn)
        own.seed = trainer.args.seed
        own.start(self.model)

        def term(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
            # the same rows where a task is gone on with
            drawn = torch.Generator().manual_seed(own.seed + trainer.state.global_step)
            # of a step in several parts, or on several ranks, each has its share
            share = 1 if num_items_in_batch is None else (labels != IGNORED).sum() / num_items_in_batch
            return share * own.loss(self.model, drawn)

        _add(trainer, term)


def _add(trainer: Any, term: Callable[..., Tensor]) -> None:
    """Add a term to the loss of a trainer."""
    learned = trainer.compute_loss_func
    trainer.compute_loss_func = lambda *given, **more: learned(*given, **more) + term(*given, **more)


def batch_of(trainer: Trainer, model: Any, rows: Any) -> tuple[Any, Tensor]:
    """Return rows as the model is called with them, and their labels."""
    batch: Any = trainer.data_collator(rows)
    batch = batch.to(model.device)
    return batch, batch.pop("labels")


def batch_loss(kind: Kind, trainer: Trainer, items: float | None = None) -> Callable[[Any, Any], Tensor]:
    """Return the loss of a model on rows, as the Trainer computes it: a sum over ``items`` labels, by default all."""
    settings: Any = trainer.args

    def loss(model: Any, rows: Any) -> Tensor:
        batch, labels = batch_of(trainer, model, rows)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=settings.bf16):
            return kind.loss(model)(model(**batch), labels, items)

    return loss
