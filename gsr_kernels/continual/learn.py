"""One task, by transformers' Trainer, from its first step or from its newest checkpoint."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from gsr_kernels.continual.examples import Example
from gsr_kernels.continual.fsdp import ShardedTrainer, shard
from gsr_kernels.continual.kinds import Kind
from gsr_kernels.continual.ranks import first, on_rank0, rank, world
from gsr_kernels.continual.settings import RunSettings
from gsr_kernels.continual.stop import stop_if_told, until_the_step_ends
from gsr_kernels.continual.trainer import EpochSampler, TaskTrainer, Watch, check_weights
from gsr_kernels.integrations.transformers import load_converted

# what the Trainer writes last into a checkpoint
LAST = "trainer_state.json"
# records of a task's loss, and of what the method does
RECORDS = 20


def learn(
    kind: Kind,
    model: Any,
    rows: Sequence[Example],
    settings: RunSettings,
    prepare: Callable[[Trainer, Path], object],
    folder: Path,
    seed: int,
    tick: Callable[[int, bool], object],
    show: Callable[[float], object] = lambda loss: None,
) -> list[dict[str, Any]]:
    """Train on the rows of a task and return the Trainer's log; all processes share every step.

    Args:
        prepare: called with the Trainer before it trains, and the folder.
        folder: of checkpoints, from which it goes on to the same weights; the caller removes it.
        seed: of the order of the rows, and of dropout.
        tick: called with the number of steps, and whether they were taken before.
        show: called with the mean loss since it was called last.

    Raises DivergenceError where the loss is no longer finite, or a weight at the end, StoppedError where it is told to.
    """
    steps = steps_of(len(rows), settings)
    if settings.gradient_checkpointing:
        # the newer of its two names in transformers
        newer = hasattr(model, "activation_checkpointing_enable")
        (model.activation_checkpointing_enable if newer else model.gradient_checkpointing_enable)()
    if settings.fsdp:
        shard(model, settings.bf16)
    args = arguments(settings, steps, folder, seed)
    trainer = (ShardedTrainer if settings.fsdp else TaskTrainer)(
        model=model,
        args=args,
        train_dataset=EpochSampler([kind.features(row) for row in rows], settings.batch, steps, seed),
        data_collator=kind.collator(model),
        compute_loss_func=kind.loss(model),
        callbacks=[Watch(tick, settings.lr, show), *_reporters(settings.log, args, folder)],
    )
    # the run has a bar of its own
    trainer.remove_callback(PrinterCallback)
    trainer.head_lr = settings.head_lr
    load_converted(trainer)
    checkpoint = on_rank0(lambda: newest(folder))
    prepare(trainer, folder)
    if checkpoint is not None:
        before = TrainerState.load_from_json(str(Path(checkpoint) / LAST))
        if before.global_step >= steps:
            # the Trainer itself would take one step more
            trainer._load_from_checkpoint(checkpoint)
            tick(steps, True)
            return _log(before)
    # what all begin with is drawn; dropout's masks are each rank's own
    torch.manual_seed(seed + rank())
    with until_the_step_ends():
        trainer.train(resume_from_checkpoint=checkpoint)
    stop_if_told()
    check_weights(model, settings.lr)
    # gradients, moments and wrappers, which the scores of the task do not want beside them
    model.zero_grad()
    for name in ("model_wrapped", "optimizer", "lr_scheduler"):
        setattr(trainer, name, None)
    trainer.accelerator.free_memory()
    return _log(trainer.state)


class _Wandb(WandbCallback):
    """Callback of Weights & Biases with a run of its own for every task, after one that was cut off too."""

    def setup(self, *args: Any, **kwargs: Any) -> None:
        self._wandb.finish()
        super().setup(*args, **kwargs)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        super().on_train_end(*args, **kwargs)
        self._wandb.finish()


def _reporters(log: str | None, args: TrainingArguments, folder: Path) -> list[TrainerCallback]:
    """Return the callback of ``--log``; a task is a run there, and the run's folder a project."""
    if log is None or not first():
        return []
    *_, out, _, seed, method, _, task = folder.absolute().parts
    args.run_name, args.project = f"{seed}/{method}/{task}", out
    if log == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        # not beside the checkpoints, which go with the task
        return [TensorBoardCallback(SummaryWriter(str(folder.parents[1] / "log" / folder.name)))]
    if log == "trackio":
        return [TrackioCallback()]
    # nobody is asked for an account, and nothing leaves the machine, unless the environment says so
    for name, value in (("MODE", "offline"), ("DIR", str(folder.parents[4])), ("PROJECT", out)):
        os.environ.setdefault(f"WANDB_{name}", value)
    return [_Wandb()]


def steps_of(rows: int, settings: RunSettings) -> int:
    """Return the optimizer steps of a task of so many rows."""
    return settings.steps or max(1, math.ceil(settings.epochs * math.ceil(rows / settings.batch)))


def _log(state: TrainerState) -> list[dict[str, Any]]:
    # to the Trainer all rows of a task are one epoch; JSON knows no infinite norm
    return [
        {key: value if math.isfinite(value) else None for key, value in record.items() if key != "epoch"}
        for record in state.log_history
    ]


def arguments(settings: RunSettings, steps: int, folder: Path, seed: int) -> TrainingArguments:
    """Return the Trainer's own settings of a task."""
    cuda = torch.cuda.is_available()
    share = settings.batch // world()
    micro = settings.micro_batch or share
    given = TrainingArguments(
        str(folder),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=share // micro,
        max_steps=steps,
        learning_rate=settings.lr,
        # down, so that a task of one step has a rate
        warmup_steps=math.floor(settings.warmup * steps),
        lr_scheduler_type=settings.schedule,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        # by the policy of what is sharded, there
        bf16=settings.bf16 and not settings.fsdp,
        seed=seed,
        data_seed=seed,
        save_steps=settings.save_every,
        save_total_limit=1,
        logging_steps=max(1, steps // RECORDS),
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=not cuda,
        dataloader_pin_memory=cuda,
    )
    # several GPUs in sight would have the Trainer multiply the batch by their number
    given._n_gpu = min(1, given.n_gpu)
    return given


def newest(folder: Path) -> str | None:
    """Return the newest checkpoint that was written whole, by all ranks; others are removed."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    whole = [path for path in found if _is_whole(path)]
    for path in found:
        if path not in whole[-1:]:
            shutil.rmtree(path)
    return str(whole[-1]) if whole else None


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / LAST).read_text())
    except (OSError, ValueError):
        return False
    # a rank's own generators, which the first one does not wait for; torch.save writes zip files
    return world() == 1 or all(is_zipfile(checkpoint / f"rng_state_{rank}.pth") for rank in range(world()))
