"""Hugging Face's Trainer, and TRL's, on a PEFT model with what acts on its adapters."""

from __future__ import annotations

from typing import Any

from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gsr_kernels.adapters.gsr import AdapterGSR
from gsr_kernels.adapters.term import Term


class TermCallback(TrainerCallback):
    """Attaches terms, or GSR of the adapter, to the Trainer's optimizer while it trains, and logs what they measure.

        Trainer(model, callbacks=[TermCallback(PSLoRA(model, lam=0.01), OLoRA(model))])

    Raises, when training begins, what their ``attach`` does, and TypeError under DeepSpeed.
    """

    def __init__(self, *terms: Term | AdapterGSR) -> None:
        self.terms = terms
        self._hooks: list[RemovableHandle] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The optimizer is there by now, inside Accelerate's wrapper."""
        # a training that failed has not ended
        self.on_train_end(args, state, control)
        self._hooks = [term.attach(kwargs["optimizer"]) for term in self.terms]

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Adds the terms' numbers to every training log, for the callbacks that follow and in the history."""
        if "loss" in logs:
            for term in self.terms:
                scalars = term.scalars()
                logs.update(scalars)
                state.log_history[-1].update(scalars)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The next task's Trainer begins with an optimizer of its own; a kept one is given back as it was."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
