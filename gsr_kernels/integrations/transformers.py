"""Hugging Face's Trainer, and TRL's, which are subclasses of it."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from gsr_kernels.optim import Handle, ModelHandle, attach
from gsr_kernels.optim.model_handle import model_methods
from gsr_kernels.optim.state import KEY


def attach_to(trainer: Trainer, method: Any = None, **settings: Any) -> MethodCallback:
    """Have any method attached to the trainer's optimizer when ``train()`` begins, and log what it does.

        attach_to(trainer, rho=0.5)
        attach_to(trainer, [PSLoRA(lam=0.01), OLoRA()])

    The optimizer, its groups and its learning rate are the Trainer's own; under DDP the ranks share the decompositions,
    under FSDP2 each keeps its shards. Give ``bases=PATH`` to resume from a checkpoint. Every ``logging_steps`` the log
    has ``handle.scalars()``: of GSR gsr/outside_span, gsr/on_diagonal, gsr/norm_ratio and gsr/skipped_nonfinite.

    Methods on a whole model, as those on adapters, are taken off when training ends, and also act on an optimizer that
    was given as ``optimizers=``.

    Args:
        trainer: before ``train()``. For methods on single weights without an optimizer of its own: to one given as
            ``optimizers=`` use attach().
        method: as for ``attach``.
        settings: as for ``attach``; ``record_every`` is ``logging_steps`` by default, under FSDP2 0: the log then has
            gsr/skipped_nonfinite alone.

    Returns:
        The callback, whose ``handle`` is there once training has begun.

    Raises:
        ValueError: trainer has its optimizer already.
        TypeError: it trains by DeepSpeed or FSDP1.
    """
    if trainer.is_deepspeed_enabled:
        raise TypeError(
            "trainer: DeepSpeed steps inside accelerator.backward() on flat partitions, out of a method's reach. Train "
            "with FSDP2 (fsdp_version: 2) or DDP instead"
        )
    if trainer.is_fsdp_enabled and not trainer.accelerator.is_fsdp2:
        raise TypeError("trainer: FSDP1 flattens the weights, which then have no singular basis. Set fsdp_version: 2")
    if model_methods(method):
        callback = MethodCallback(trainer, method, settings)
    else:
        callback = _attach_when_trained(trainer, method, settings)
    # first, so that the reporters that come after it see what it adds
    trainer.callback_handler.callbacks.insert(0, callback)
    return callback


def _attach_when_trained(trainer: Trainer, method: Any, settings: dict[str, Any]) -> MethodCallback:
    """Have the trainer make an optimizer that tells the callback what a checkpoint holds of the method."""
    if trainer.optimizer is not None:
        raise ValueError(
            "trainer has its optimizer already: call gsr_kernels.attach(model, optimizer, ...) on that one"
        )
    steps = trainer.args.logging_steps
    model: Any = trainer.model
    # where weights are sharded no gradient is whole
    sharded = trainer.is_fsdp_enabled or any(hasattr(parameter, "placements") for parameter in model.parameters())
    every = 0 if sharded else int(steps) if steps >= 1 else 1
    kind = ShardedMethodCallback if sharded else MethodCallback
    callback = kind(trainer, method, {"record_every": every, **settings})
    own = trainer.optimizer_cls_and_kwargs

    def create(model: nn.Module) -> Optimizer:
        trainer.optimizer_cls_and_kwargs = own
        try:
            optimizer = trainer.create_optimizer(model)
        finally:
            # a Trainer with model_init makes another optimizer for every train()
            trainer.optimizer_cls_and_kwargs = factory
        optimizer.register_load_state_dict_pre_hook(callback.remember)
        return optimizer

    # whatever is no optimizer class is called twice: for the factory, and for the optimizer
    factory: Any = (lambda: create, {})
    trainer.optimizer_cls_and_kwargs = factory
    return callback


class MethodCallback(TrainerCallback):
    """Attaches when the model is wrapped or sharded, and adds the method's scalars to every training log.

    By then the Trainer has loaded a checkpoint: what that holds of the method goes to the handle afterwards.
    """

    def __init__(self, trainer: Trainer, method: Any, settings: dict[str, Any]) -> None:
        self.trainer = trainer
        self.handle: Handle | ModelHandle | None = None
        self._method, self._settings = method, settings
        self._loaded: Any = None

    def remember(self, optimizer: Optimizer, saved: dict[str, Any]) -> None:
        """Keep what a checkpoint of the optimizer holds, until there is a handle for it."""
        self._loaded = saved.get(KEY)

    def resumed(self, state: TrainerState) -> Any:
        """Return the handle's state in the checkpoint that was loaded, if one was."""
        return self._loaded

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attach to an optimizer that has no handle yet."""
        # a training that failed has not ended
        self.on_train_end(args, state, control)
        optimizer = kwargs["optimizer"]
        model: Any = self.trainer.model
        if model_methods(self._method):
            self.handle = attach(model, optimizer, self._method, **self._settings)
        elif Handle.of(optimizer) is None:
            self.handle = attach(self.trainer.model_wrapped, optimizer, self._method, **self._settings)
            saved = self.resumed(state)
            if saved is not None:
                self.handle.load_state_dict(saved)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Change ``logs`` for the callbacks that follow, and the history that the Trainer has written before."""
        if self.handle is not None and "loss" in logs:
            scalars = self.handle.scalars()
            logs.update(scalars)
            state.log_history[-1].update(scalars)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give a model and an optimizer that outlive the training back as they were."""
        if isinstance(self.handle, ModelHandle):
            self.handle.remove()


class ShardedMethodCallback(MethodCallback, ExportableState):
    """Under FSDP2 torch.distributed.checkpoint drops the handle's state from the optimizer's: the Trainer's has it."""

    def state(self) -> dict[str, Any]:
        """Return numbers and texts for trainer_state.json: a method on sharded weights keeps no tensors."""
        return {"args": {}, "attributes": {KEY: None if self.handle is None else self.handle.state_dict()}}

    def resumed(self, state: TrainerState) -> Any:
        kept: Any = state.stateful_callbacks
        saved = kept.get(type(self).__name__) if state.global_step else None
        return None if saved is None else saved["attributes"][KEY]
