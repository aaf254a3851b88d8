"""Hugging Face's Trainer, and TRL's, which are subclasses of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers
from torch.optim import Optimizer
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerState
from transformers.trainer_callback import ExportableState
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging

from gsr_kernels.io.saved_model import load_into
from gsr_kernels.optim import Handle, ModelHandle, attach
from gsr_kernels.optim.model_handle import model_methods
from gsr_kernels.optim.report import warn
from gsr_kernels.optim.state import KEY
from gsr_kernels.optim.supported import innermost


def attach_to(trainer: Trainer, method: Any = None, **settings: Any) -> MethodCallback:
    """Have any method attached to the trainer's optimizer when ``train()`` begins, and log what it does.

        attach_to(trainer, rho=0.5)
        attach_to(trainer, [PSLoRA(lam=0.01), OLoRA()])

    Give ``bases=PATH`` to resume from a checkpoint. Every ``logging_steps`` the log has ``handle.scalars()``. A second
    ``train()`` from the start is another task: the bases are then those of the weights as they are. Methods on a whole
    model, as those on adapters, are taken off when training ends.

    Args:
        trainer: before ``train()``, and without ``optimizers=`` where the method is on single weights.
        method: as for ``attach``.
        settings: as for ``attach``; ``record_every`` is ``logging_steps`` by default, under FSDP2 and DeepSpeed 0:
            the log then has gsr/skipped_nonfinite alone.

    Returns the callback, whose ``handle`` is there once training has begun.

    Raises ValueError where the trainer has its optimizer already, or DeepSpeed is to make one; TypeError where it
    trains by FSDP1. What is not supported under DeepSpeed is refused when training begins.
    """
    if trainer.is_deepspeed_enabled and "optimizer" in trainer.accelerator.state.deepspeed_plugin.deepspeed_config:
        raise ValueError(
            "trainer: DeepSpeed's configuration has an optimizer, whose state would be loaded before the method is "
            "there: leave that entry out, and the Trainer's own (optim=) is used"
        )
    if trainer.is_fsdp_enabled and not trainer.accelerator.is_fsdp2:
        raise TypeError(
            "trainer: FSDP1 keeps nothing of a method in its checkpoints, so that no training could go on from one. "
            "Set fsdp_version: 2, or call attach() in a loop of your own"
        )
    if not trainer.is_deepspeed_enabled:
        load_converted(trainer)
    callback = MethodCallback(trainer, method, settings)
    for one in model_methods(method):
        # a checkpoint is loaded after this
        one.start(trainer.model)  # type: ignore[arg-type]
    if not model_methods(method):
        if trainer.optimizer is not None:
            raise ValueError(
                "trainer has its optimizer already: call gsr_kernels.attach(model, optimizer, ...) on that one"
            )
        steps = trainer.args.logging_steps
        model: Any = trainer.model
        # where weights are sharded no gradient is whole
        sharded = trainer.is_fsdp_enabled or any(hasattr(parameter, "placements") for parameter in model.parameters())
        every = 0 if sharded or trainer.is_deepspeed_enabled else int(steps) if steps >= 1 else 1
        kind = ShardedMethodCallback if sharded else MethodCallback
        callback = kind(trainer, method, {"record_every": every, **settings})
        create = trainer.create_optimizer

        def create_and_watch(*args: Any, **kwargs: Any) -> Optimizer:
            # also where a subclass makes its own
            optimizer = create(*args, **kwargs)
            callback.watch(optimizer)
            return optimizer

        trainer.create_optimizer = create_and_watch  # type: ignore[method-assign]
    # first, so that the reporters that come after it see what it adds; a new list: one of them may be calling
    trainer.callback_handler.callbacks = [callback, *trainer.callback_handler.callbacks]
    return callback


def load_converted(trainer: Trainer) -> None:
    """Have the trainer load its checkpoints as ``from_pretrained`` does, and refuse those that are not its model's.

    Its own loading takes the names in the file, where packed experts are saved one by one: it would leave them out.
    """
    whole: Any = trainer.model
    # done already, or of shards, which torch.distributed.checkpoint loads
    if "_load_from_checkpoint" in vars(trainer) or any(hasattr(p, "placements") for p in whole.parameters()):
        return
    if type(trainer)._load_from_checkpoint is not Trainer._load_from_checkpoint:
        warn("loader", trainer=type(trainer).__name__)
        return
    load, load_best = trainer._load_from_checkpoint, trainer._load_best_model

    def convert(folder: str, otherwise: Callable[[], object]) -> None:
        model: Any = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
        saved = any((Path(folder) / name).is_file() for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME))
        sharded = any(hasattr(parameter, "placements") for parameter in model.parameters())
        if not saved or sharded or trainer.is_fsdp_enabled or not isinstance(model, PreTrainedModel):
            otherwise()
            return
        load_into(model, folder)
        written = json.loads((Path(folder) / CONFIG_NAME).read_bytes()).get("transformers_version")
        if written != transformers.__version__:
            logging.get_logger("transformers.trainer").warning(
                f"{folder} was written by transformers {written}, and this is {transformers.__version__}"
            )

    def load_checkpoint(resume_from_checkpoint: str, model: Any = None) -> None:
        convert(resume_from_checkpoint, lambda: load(resume_from_checkpoint, model))

    trainer._load_from_checkpoint = load_checkpoint  # type: ignore[method-assign]
    trainer._load_best_model = lambda: convert(  # type: ignore[method-assign]
        str(trainer.state.best_model_checkpoint), load_best
    )


class MethodCallback(TrainerCallback):
    """Attaches when the model is wrapped or sharded, and adds the method's scalars to every training log.

    By then the Trainer has loaded a checkpoint: what that holds of the method goes to the handle afterwards.
    """

    def __init__(self, trainer: Trainer, method: Any, settings: dict[str, Any]) -> None:
        self.trainer = trainer
        self.handle: Handle | ModelHandle | None = None
        self._method, self._settings = method, settings
        self._loaded: Any = None

    def watch(self, optimizer: Optimizer) -> None:
        """Keep what a checkpoint of the optimizer holds, until there is a handle for it."""

        def keep(_: Optimizer, saved: dict[str, Any]) -> None:
            self._loaded = saved.get(KEY)

        self._loaded = None
        innermost(optimizer).register_load_state_dict_pre_hook(keep)

    def resumed(self, state: TrainerState) -> Any:
        """Return the handle's state in the checkpoint that was loaded, if one was."""
        return self._loaded

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Attach to an optimizer that has no handle yet; another training from the start is another task."""
        # a training that failed has not ended
        self.on_train_end(args, state, control)
        wrapped: Any = self.trainer.model_wrapped
        engine = self.trainer.is_deepspeed_enabled
        optimizer = wrapped.optimizer.optimizer if engine else kwargs["optimizer"]
        if model_methods(self._method) and not engine:
            model: Any = self.trainer.model
            self.handle = attach(model, optimizer, self._method, **self._settings)
            return
        handle, saved = Handle.of(optimizer), self.resumed(state)
        if handle is None:
            if engine:
                from gsr_kernels.integrations.deepspeed import attach_engine

                handle = attach_engine(wrapped, self._method, **self._settings)
            else:
                handle = attach(wrapped, optimizer, self._method, **self._settings)
            self.handle = handle
        elif handle is not self.handle:
            # attached by hand
            return
        elif saved is None:
            handle.refresh()
        if saved is not None:
            handle.load_state_dict(saved)

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Change ``logs`` for the callbacks that follow, and the history that the Trainer has written before."""
        if self.handle is not None and "loss" in logs:
            scalars = self.handle.scalars()
            logs.update(scalars)
            state.log_history[-1].update(scalars)

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Give a model and an optimizer that outlive the training back as they were; warn where no step was taken."""
        if isinstance(self.handle, ModelHandle):
            self.handle.remove()
        elif self.handle is not None and not any(weight.steps for weight in self.handle.weights):
            self.handle.doctor()


class ShardedMethodCallback(MethodCallback, ExportableState):
    """Under FSDP2 torch.distributed.checkpoint drops the handle's state from the optimizer's: the Trainer's has it."""

    def state(self) -> dict[str, Any]:
        """Return numbers and texts for trainer_state.json: a method on sharded weights keeps no tensors."""
        return {"args": {}, "attributes": {KEY: None if self.handle is None else self.handle.state_dict()}}

    def resumed(self, state: TrainerState) -> Any:
        kept: Any = state.stateful_callbacks
        saved = kept.get(type(self).__name__) if state.global_step else None
        return None if saved is None else saved["attributes"][KEY]
