"""Hugging Face's Trainer, and TRL's, which are subclasses of it."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from gsr_kernels.optim import Handle, attach
from gsr_kernels.optim.state import KEY


def attach_to(trainer: Trainer, **settings: Any) -> None:
    """Has the trainer's optimizer attached when ``train()`` begins, and logs what the method does.

    The optimizer, its groups and its learning rate are the Trainer's own; under DDP the ranks share the decompositions,
    under FSDP2 each keeps its parts. Give ``bases=PATH`` to resume from a checkpoint. Every ``logging_steps`` the log
    has gsr/outside_span, gsr/on_diagonal, gsr/norm_ratio and gsr/skipped_nonfinite; ``Handle.of(trainer.optimizer)`` is
    the handle.

    Args:
        trainer: before ``train()``, without an optimizer of its own: to one given as ``optimizers=`` use attach().
        settings: as for ``attach``; ``record_every`` is ``logging_steps`` by default, under FSDP2 0: the log then has
            gsr/skipped_nonfinite alone.

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
    if trainer.optimizer is not None:
        raise ValueError(
            "trainer has its optimizer already: call gsr_kernels.attach(model, optimizer, ...) on that one"
        )
    steps = trainer.args.logging_steps
    model: Any = trainer.model
    # where weights are cut over ranks no gradient is whole
    cut = trainer.is_fsdp_enabled or any(hasattr(parameter, "placements") for parameter in model.parameters())
    every = 0 if cut else int(steps) if steps >= 1 else 1
    made = CutMethodCallback if cut else MethodCallback
    method = made(trainer, {"record_every": every, **settings})
    own = trainer.optimizer_cls_and_kwargs

    def create(model: nn.Module) -> Optimizer:
        trainer.optimizer_cls_and_kwargs = own
        try:
            optimizer = trainer.create_optimizer(model)
        finally:
            # a Trainer with model_init makes another optimizer for every train()
            trainer.optimizer_cls_and_kwargs = factory
        optimizer.register_load_state_dict_pre_hook(method.remember)
        return optimizer

    # whatever is no optimizer class is called twice: for the factory, and for the optimizer
    factory: Any = (lambda: create, {})
    trainer.optimizer_cls_and_kwargs = factory
    # first, so that the reporters that come after it see what it adds
    trainer.callback_handler.callbacks.insert(0, method)


class MethodCallback(TrainerCallback):
    """Attaches when the model is wrapped or cut, and adds the method's scalars to every training log.

    By then the Trainer has loaded a checkpoint: what that holds of the method goes to the handle afterwards.
    """

    def __init__(self, trainer: Trainer, settings: dict[str, Any]) -> None:
        self.trainer = trainer
        self._settings = settings
        self._loaded: Any = None

    def remember(self, optimizer: Optimizer, saved: dict[str, Any]) -> None:
        """Keeps what a checkpoint of the optimizer holds, until there is a handle for it."""
        self._loaded = saved.get(KEY)

    def resumed(self, state: TrainerState) -> Any:
        """The handle's state in the checkpoint that was loaded, if one was."""
        return self._loaded

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A new optimizer has no handle yet."""
        optimizer = kwargs["optimizer"]
        if Handle.of(optimizer) is None:
            handle = attach(self.trainer.model_wrapped, optimizer, **self._settings)
            saved = self.resumed(state)
            if saved is not None:
                handle.load_state_dict(saved)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Changes ``logs`` for the callbacks that follow, and the history that the Trainer has written before."""
        handle = Handle.of(kwargs["optimizer"])
        if handle is not None and "loss" in logs:
            logs.update(handle.scalars())
            state.log_history[-1].update(handle.scalars())


class CutMethodCallback(MethodCallback, ExportableState):
    """Under FSDP2 torch.distributed.checkpoint drops the handle's state from the optimizer's: the Trainer's has it."""

    def state(self) -> dict[str, Any]:
        """For trainer_state.json: numbers and texts, as a method on weights that are cut keeps no tensors."""
        optimizer = self.trainer.optimizer
        handle = None if optimizer is None else Handle.of(optimizer)
        return {"args": {}, "attributes": {KEY: None if handle is None else handle.state_dict()}}

    def resumed(self, state: TrainerState) -> Any:
        """See MethodCallback.resumed."""
        kept: Any = state.stateful_callbacks
        saved = kept.get(type(self).__name__) if state.global_step else None
        return None if saved is None else saved["attributes"][KEY]
