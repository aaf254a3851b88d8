"""What decides the numbers of a run of a Hugging Face model, beside the rows: each field is a flag of the command."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from gsr_kernels.continual.methods import MethodSettings, check_methods

KINDS = ("causal", "seq2seq", "classifier")
SCHEDULES = ("linear", "cosine", "constant_with_warmup")
DTYPES = ("float32", "bfloat16")


def option(default: Any, about: str, type: Callable[[str], Any] | None = None, **flag: Any) -> Any:
    """A field that is a flag: its default, what it is for, and how its text is read; a truth value has no text."""
    return field(default=default, metadata={"help": about, "type": type, **flag})


@dataclass(frozen=True)
class RunSettings:
    """The same for every method and seed. Raises ValueError, naming the field, for what cannot be."""

    model: str
    methods: tuple[str, ...] = ("seqft", "gsr")
    method: MethodSettings = field(default_factory=MethodSettings)
    seeds: int = 1
    steps: int | None = None
    lr: float = 3e-5
    first_seed: int = option(0, "number of the first of the seeds", int)
    kind: str | None = option(None, "what the model is; default: what its configuration says", str, choices=KINDS)
    epochs: float = option(3.0, "over the rows of a task, unless --steps is given", float)
    batch: int = option(32, "rows of an optimizer step", int)
    micro_batch: int | None = option(None, "rows at a time within a step, default all; the rest is accumulated", int)
    warmup: float = option(0.05, "share of the steps of a task in which the rate rises", float)
    schedule: str = option("linear", "of the rate after that", str, choices=SCHEDULES)
    weight_decay: float = option(0.0, "of AdamW", float)
    max_grad_norm: float = option(1.0, "to which the gradient of all that is trained is cut; 0: it is not", float)
    head_lr: float | None = option(None, "of a new classification head; default: --lr", float)
    adapter_dropout: float = option(0.0, "of adapters", float)
    adapter_lam: float | None = option(None, "strength of o-lora (default: 0.5) or ps-lora (default: 0.1)", float)
    bf16: bool = option(False, "train under bfloat16 autocast")
    dtype: str = option("float32", "of the weights", str, choices=DTYPES)
    gradient_checkpointing: bool = option(False, "spend time to save memory")
    max_tokens: int = option(512, "of a row; longer prompts are cut", int)
    new_tokens: int | None = option(None, "of an answer; default: the longest completion of the task's rows", int)
    chat: bool = option(False, "put prompts through the tokenizer's chat template")
    train_rows: int | None = option(None, "of a task at most, default all", int)
    test_rows: int | None = option(None, "of a task at most, default all", int)
    eval_batch: int = option(32, "rows that answer at a time", int)
    fsdp: bool = option(False, "cut the model over the processes of torchrun (FSDP2), instead of DDP")
    save_every: int = option(100, "steps between checkpoints within a task", int)
    keep_models: bool = option(False, "keep the model after every task, not the last alone")

    @property
    def numbers(self) -> range:
        """Of the seeds."""
        return range(self.first_seed, self.first_seed + self.seeds)

    def __post_init__(self) -> None:
        check_methods(self.methods)
        whole = ("seeds", "steps", "batch", "micro_batch", "max_tokens", "new_tokens", "train_rows", "test_rows")
        for name in (*whole, "eval_batch", "save_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.first_seed < 0:
            raise ValueError(f"first_seed must be at least 0, got {self.first_seed}")
        for name in ("lr", "head_lr", "epochs", "adapter_lam"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be positive and finite, got {value}")
        for name in ("warmup", "adapter_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be a share in [0, 1), got {getattr(self, name)}")
        for name in ("weight_decay", "max_grad_norm"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} must be finite and at least 0, got {getattr(self, name)}")
        if self.batch % (self.micro_batch or self.batch):
            raise ValueError(f"micro_batch {self.micro_batch} must divide batch {self.batch}")


FLAGS = [each for each in fields(RunSettings) if "help" in each.metadata]


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """A flag for each field that is one."""
    for each in FLAGS:
        about = dict(each.metadata)
        if about["type"] is None:
            del about["type"]
            about["action"] = argparse.BooleanOptionalAction
        elif each.default is not None:
            about["help"] += f" (default: {each.default})"
        parser.add_argument("--" + each.name.replace("_", "-"), default=None, **about)
