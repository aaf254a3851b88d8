"""Settings of a sequential run, all that decides its numbers beside the rows; most fields are flags of the command."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any

from gsr_kernels.basis import STORAGE
from gsr_kernels.cli import rank_of
from gsr_kernels.options import RANK

KINDS = ("causal", "seq2seq", "classifier")
SCHEDULES = ("linear", "cosine", "constant_with_warmup")
LOGS = ("tensorboard", "trackio", "wandb")
DTYPES = ("float32", "bfloat16")
# what a run learns by that names no method; the last is for models that go on with a text, held whole
USUAL = ("seqft", "gsr", "lwf-own")
# of a setting that decides no numbers
SAME = "the numbers are the same"
SEEDS = "at least 1, or different numbers from 0 on with commas between"
# what a value must be
RULES: dict[str, Callable[[Any], bool]] = {
    "at least 1": lambda number: number >= 1,
    "at least 0": lambda number: number >= 0,
    "finite and at least 0": lambda number: math.isfinite(number) and number >= 0,
    "positive and finite": lambda number: math.isfinite(number) and number > 0,
    "a share in [0, 1)": lambda number: 0 <= number < 1,
    "a finite number in [0, 1]": lambda number: 0 <= number <= 1,
    SEEDS: lambda seeds: (
        0 < len(set(seeds)) == len(seeds) and min(seeds) >= 0 if isinstance(seeds, tuple) else seeds >= 1
    ),
    RANK: lambda number: number >= 1 if isinstance(number, int) else 0 < number < 1,
}


def option(
    default: Any, about: str, type: Callable[[str], Any] | None = None, must: str = "", free: str = "", **flag: Any
) -> Any:
    """Return a field that is a flag; ``type`` reads its text, which a bool has not, ``must`` is one of ``RULES``.

    ``free``: it may change when a run goes on, for the reason that it gives.
    """
    return field(default=default, metadata={"must": must, "free": free, "flag": {"help": about, "type": type, **flag}})


def seeds_of(text: str) -> int | tuple[int, ...]:
    """Parse a number of seeds, or with commas the seeds themselves."""
    numbers = text.removesuffix(",").split(",")
    if not all(number.strip().lstrip("-").isdecimal() for number in numbers):
        raise argparse.ArgumentTypeError(f"must be {SEEDS}, got {text!r}")
    return tuple(map(int, numbers)) if "," in text else int(text)


def count(default: int | None, about: str, free: str = "") -> Any:
    """Return a field that is a flag, a number from 1 on."""
    return option(default, about, int, "at least 1", free)


def positive(default: float | None, about: str) -> Any:
    """Return a field that is a flag, a positive number."""
    return option(default, about, float, "positive and finite")


@dataclass(frozen=True)
class DemoSettings:
    """Model of the demo. Raises ValueError, naming the field, for what cannot be."""

    width: int = count(64, "of the demo's model")
    layers: int = count(2, "of the demo's model")
    pretrain_steps: int = count(500, "of the demo's model, before all tasks")
    pretrain_lr: float = positive(3e-3, "of the demo's model, before all tasks")
    heads: int = 4
    kv_heads: int = 2

    def __post_init__(self) -> None:
        check(self)
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} must be a multiple of 2 * heads = {2 * self.heads}")


@dataclass(frozen=True)
class RunSettings:
    """Settings that are the same for every method and seed; ValueError, naming the field, for what cannot be."""

    model: str | None = option(
        None, "a folder, or a name on a hub; default: the demo's", str, free="its files are the same"
    )
    methods: tuple[str, ...] = USUAL
    demo: DemoSettings | None = None
    # of weights that are taken apart by heads, see attach()
    heads: Mapping[str, int | tuple[int, int]] | None = None
    rho: float = option(0.5, "of GSR, in [0, 1]", float, "a finite number in [0, 1]")
    rank: int | float | None = option(None, "directions of a weight, or a share; default: all", rank_of, RANK)
    precision: str | None = option(
        None, "of the singular bases; default: fp16 on a GPU, fp32 on a CPU", str, choices=tuple(STORAGE)
    )
    # of 3e-3, 1e-2 and 3e-2 the one where SeqLoRA learned most on the demo's tasks, width 64, 2 layers
    adapter_lr: float = positive(1e-2, "of AdamW on adapters")
    adapter_rank: int = count(8, "of adapters")
    adapter_dropout: float = option(0.0, "of adapters", float, "a share in [0, 1)")
    adapter_targets: str | None = option(
        None, "PEFT's target_modules, such as all-linear; default: PEFT's own choice, query and value", str
    )
    seeds: int | tuple[int, ...] = option(1, "how many, or which: 42,1121", seeds_of, SEEDS)
    steps: int | None = count(None, "of a task; default: those of --epochs")
    lr: float = positive(3e-5, "of AdamW")
    first_seed: int = option(0, "number of the first of the seeds", int, "at least 0")
    kind: str | None = option(None, "what the model is; default: what its configuration says", str, choices=KINDS)
    epochs: float = positive(3.0, "over a task's rows")
    batch: int = count(32, "rows of an optimizer step")
    micro_batch: int | None = count(
        None,
        "rows at a time; the rest is accumulated",
        "the numbers are the same up to rounding, and dropout draws other masks",
    )
    warmup: float = option(0.05, "share of the steps of a task in which the rate rises", float, "a share in [0, 1)")
    schedule: str = option("linear", "of the rate after that", str, choices=SCHEDULES)
    weight_decay: float = option(0.0, "of AdamW", float, "finite and at least 0")
    max_grad_norm: float = option(
        1.0, "to which the gradient of all that is trained is clipped; 0: it is not", float, "finite and at least 0"
    )
    head_lr: float | None = positive(None, "of a new classification head; default: --lr")
    bf16: bool = option(False, "train under bfloat16 autocast")
    dtype: str = option("float32", "of the weights", str, choices=DTYPES)
    gradient_checkpointing: bool = option(False, "spend time to save memory", free=SAME)
    max_tokens: int = count(512, "of a row; longer ones are cut")
    new_tokens: int | None = count(None, "of an answer; default: the longest known")
    chat: bool = option(False, "put prompts through the chat template")
    train_rows: int | None = count(None, "of a task at most, default all")
    test_rows: int | None = count(None, "of a task at most, default all")
    validation: float | None = option(
        None,
        "share of the rows of a task without a validation split of its own; --sweep chooses by it",
        float,
        "a share in [0, 1)",
    )
    eval_batch: int = count(32, "rows that answer at a time", "the answers are the same up to rounding")
    fsdp: bool = option(False, "shard the model by FSDP2, under torchrun")
    save_every: int = count(100, "steps between checkpoints within a task", SAME)
    keep_models: bool = option(False, "keep the model after every task, not the last alone", free=SAME)
    log: str | None = option(None, "where losses go beside loss.png", str, free=SAME, choices=LOGS)

    @property
    def numbers(self) -> tuple[int, ...]:
        """Return those of the seeds."""
        if isinstance(self.seeds, tuple):
            return self.seeds
        return tuple(range(self.first_seed, self.first_seed + self.seeds))

    def __post_init__(self) -> None:
        check(self)
        if isinstance(self.seeds, tuple) and self.first_seed:
            raise ValueError(f"first_seed is for a number of seeds, and --seeds lists them: {self.seeds}")
        if self.batch % (self.micro_batch or self.batch):
            raise ValueError(f"micro_batch {self.micro_batch} must divide batch {self.batch}")


def check(settings: Any) -> None:
    """Raise ValueError for a field that breaks its rule; None breaks none."""
    for each in flags(type(settings)):
        must, value = each.metadata["must"], getattr(settings, each.name)
        if must and value is not None and not RULES[must](value):
            raise ValueError(f"{each.name} must be {must}, got {value}")


def flags(settings: type[RunSettings] | type[DemoSettings]) -> list[Field]:
    """Return the fields that are flags."""
    return [each for each in fields(settings) if "flag" in each.metadata]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each field that is one."""
    for each in (*flags(RunSettings), *flags(DemoSettings)):
        about = dict(each.metadata["flag"])
        if about["type"] is None:
            del about["type"]
            about["action"] = argparse.BooleanOptionalAction
        else:
            # a text's is its name
            if "choices" not in about and about["type"] is not str:
                about["metavar"] = "N"
            if each.default is not None:
                about["help"] += f" (default: {each.default})"
        parser.add_argument("--" + each.name.replace("_", "-"), default=None, **about)


def given(settings: type[RunSettings] | type[DemoSettings], args: argparse.Namespace) -> dict[str, Any]:
    """Return the fields whose flags were given."""
    values = {each.name: getattr(args, each.name) for each in flags(settings)}
    return {name: value for name, value in values.items() if value is not None}
