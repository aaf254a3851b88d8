"""Settings of a sequential run, all that decides its numbers beside the rows; most fields are flags of the command."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields
from typing import Any

from gsr_kernels.checks import check_rho
from gsr_kernels.cli import rank_of
from gsr_kernels.options import RANK

KINDS = ("causal", "seq2seq", "classifier")
SCHEDULES = ("linear", "cosine", "constant_with_warmup")
DTYPES = ("float32", "bfloat16")


def option(default: Any, about: str, type: Callable[[str], Any] | None = None, **flag: Any) -> Any:
    """Return a field that is a flag: its default, what it is for, and how its text is read; a bool has no text."""
    return field(default=default, metadata={"help": about, "type": type, **flag})


@dataclass(frozen=True)
class DemoSettings:
    """Model of the demo. Raises ValueError, naming the field, for what cannot be."""

    width: int = option(64, "of the demo's model", int)
    layers: int = option(2, "of the demo's model", int)
    pretrain_steps: int = option(500, "of the demo's model, before all tasks", int)
    pretrain_lr: float = option(3e-3, "of the demo's model, before all tasks", float)
    heads: int = 4
    kv_heads: int = 2

    def __post_init__(self) -> None:
        check_at_least_1(self, "width", "layers", "pretrain_steps")
        check_positive(self, "pretrain_lr")
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} must be a multiple of 2 * heads = {2 * self.heads}")


@dataclass(frozen=True)
class RunSettings:
    """Settings that are the same for every method and seed. Raises ValueError, naming the field, for what cannot be.

    ``demo``: of the model that is built and pretrained where ``model`` is None.
    """

    model: str | None = option(
        None, "a folder that save_pretrained wrote, or a name on a hub; default: the demo's", str, metavar="DIR_OR_NAME"
    )
    methods: tuple[str, ...] = ("seqft", "gsr")
    demo: DemoSettings | None = None
    rho: float = option(0.5, "of GSR, in [0, 1]", float)
    rank: int | float | None = option(None, f"of a weight: {RANK}; default: all", rank_of)
    # of 3e-3, 1e-2 and 3e-2 the one where SeqLoRA learned most on the demo's tasks, width 64, 2 layers
    adapter_lr: float = option(1e-2, "of AdamW on adapters", float)
    adapter_rank: int = option(8, "of adapters", int)
    adapter_dropout: float = option(0.0, "of adapters", float)
    adapter_lam: float | None = option(None, "strength of o-lora (default: 0.5) or ps-lora (default: 0.1)", float)
    adapter_targets: str | None = option(
        None, "PEFT's target_modules, such as all-linear; default: PEFT's own choice, query and value", str
    )
    seeds: int = option(1, "repetitions", int)
    steps: int | None = option(None, "for each task; default: those of --epochs", int)
    lr: float = option(3e-5, "of AdamW, for every method", float)
    first_seed: int = option(0, "number of the first of the seeds", int)
    kind: str | None = option(None, "what the model is; default: what its configuration says", str, choices=KINDS)
    epochs: float = option(3.0, "over the rows of a task, unless --steps is given", float)
    batch: int = option(32, "rows of an optimizer step", int)
    micro_batch: int | None = option(None, "rows at a time within a step, default all; the rest is accumulated", int)
    warmup: float = option(0.05, "share of the steps of a task in which the rate rises", float)
    schedule: str = option("linear", "of the rate after that", str, choices=SCHEDULES)
    weight_decay: float = option(0.0, "of AdamW", float)
    max_grad_norm: float = option(1.0, "to which the gradient of all that is trained is clipped; 0: it is not", float)
    head_lr: float | None = option(None, "of a new classification head; default: --lr", float)
    bf16: bool = option(False, "train under bfloat16 autocast")
    dtype: str = option("float32", "of the weights", str, choices=DTYPES)
    gradient_checkpointing: bool = option(False, "spend time to save memory")
    max_tokens: int = option(512, "of a row; longer prompts are truncated", int)
    new_tokens: int | None = option(None, "of an answer; default: the longest completion of the task's rows", int)
    chat: bool = option(False, "put prompts through the tokenizer's chat template")
    train_rows: int | None = option(None, "of a task at most, default all", int)
    test_rows: int | None = option(None, "of a task at most, default all", int)
    eval_batch: int = option(32, "rows that answer at a time", int)
    fsdp: bool = option(False, "shard the model over the processes of torchrun (FSDP2), instead of DDP")
    save_every: int = option(100, "steps between checkpoints within a task", int)
    keep_models: bool = option(False, "keep the model after every task, not the last alone")

    @property
    def numbers(self) -> range:
        """Of the seeds."""
        return range(self.first_seed, self.first_seed + self.seeds)

    def __post_init__(self) -> None:
        check_rho(self.rho)
        if self.rank is not None and not (self.rank >= 1 if isinstance(self.rank, int) else 0 < self.rank < 1):
            raise ValueError(f"rank must be {RANK}, got {self.rank}")
        check_at_least_1(self, "seeds", "steps", "batch", "micro_batch", "max_tokens", "new_tokens", "train_rows")
        check_at_least_1(self, "test_rows", "eval_batch", "save_every", "adapter_rank")
        if self.first_seed < 0:
            raise ValueError(f"first_seed must be at least 0, got {self.first_seed}")
        check_positive(self, "lr", "head_lr", "epochs", "adapter_lr", "adapter_lam")
        for name in ("warmup", "adapter_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be a share in [0, 1), got {getattr(self, name)}")
        for name in ("weight_decay", "max_grad_norm"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} must be finite and at least 0, got {getattr(self, name)}")
        if self.batch % (self.micro_batch or self.batch):
            raise ValueError(f"micro_batch {self.micro_batch} must divide batch {self.batch}")


def check_at_least_1(settings: Any, *names: str) -> None:
    """Raise ValueError for a field below 1."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def check_positive(settings: Any, *names: str) -> None:
    """Raise ValueError for a field that is not a positive finite number."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive and finite, got {value}")


def flags(settings: type[RunSettings] | type[DemoSettings]) -> list[Field]:
    """Return the fields that are flags."""
    return [each for each in fields(settings) if "help" in each.metadata]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each field that is one."""
    for each in (*flags(RunSettings), *flags(DemoSettings)):
        about = dict(each.metadata)
        if about["type"] is None:
            del about["type"]
            about["action"] = argparse.BooleanOptionalAction
        elif each.default is not None:
            about["help"] += f" (default: {each.default})"
        parser.add_argument("--" + each.name.replace("_", "-"), default=None, **about)


def given(settings: type[RunSettings] | type[DemoSettings], args: argparse.Namespace) -> dict[str, Any]:
    """Return the fields whose flags were given."""
    values = {each.name: getattr(args, each.name) for each in flags(settings)}
    return {name: value for name, value in values.items() if value is not None}
