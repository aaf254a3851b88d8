"""The methods of a sequential run, by name: the one table that says what acts between gradients and optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import NamedTuple

from torch.optim import Optimizer

from gsr_kernels.checks import check_rho
from gsr_kernels.continual.library import Row
from gsr_kernels.continual.model import ByteDecoder
from gsr_kernels.continual.train import loss
from gsr_kernels.messages import install
from gsr_kernels.methods import EWC, GSR, OSF, PSP, SR, GSRFull, Method
from gsr_kernels.optim import attach
from gsr_kernels.options import RANK

# how firmly EWC holds (of 1e2, 1e3, 1e4 and 1e5 the best AP of a smaller model with a seed of its own), and how many
# rows of a task say where
EWC_LAM = 1e3
EWC_ROWS = 64


@dataclass(frozen=True)
class MethodSettings:
    """What the methods' own flags say. Raises ValueError, naming the field, for what no model can have."""

    rho: float = 0.5
    rank: int | float | None = None
    # of 3e-3, 1e-2 and 3e-2 the one where SeqLoRA learns most: width 64, 2 layers, 80 steps, a seed of its own
    adapter_lr: float = 1e-2
    adapter_rank: int = 8

    def __post_init__(self) -> None:
        check_rho(self.rho)
        if not (math.isfinite(self.adapter_lr) and self.adapter_lr > 0):
            raise ValueError(f"adapter_lr must be positive and finite, got {self.adapter_lr}")
        if self.adapter_rank < 1:
            raise ValueError(f"adapter_rank must be at least 1, got {self.adapter_rank}")
        if self.rank is not None and not (self.rank >= 1 if isinstance(self.rank, int) else 0 < self.rank < 1):
            raise ValueError(f"rank must be {RANK}, got {self.rank}")


class AtWork(NamedTuple):
    """A method that acts: all of its settings, and what to call with the rows just learned before the next task.

    Where the model itself is not what learns: ``start_task`` gives the optimizer of a task with these rows, ``scored``
    a model that computes what has been learned.
    """

    described: str
    next_task: Callable[[Sequence[Row]], None]
    start_task: Callable[[Sequence[Row]], Optimizer] | None = None
    scored: Callable[[], ByteDecoder] | None = None


# at work from entry to exit
Begin = Callable[[ByteDecoder, Optimizer, MethodSettings], AbstractContextManager[AtWork]]


class Entry(NamedTuple):
    """A method: its name in a table, how it begins, and the fields of ``MethodSettings`` that it reads.

    ``act``: what ``attach`` is given for a Hugging Face model, None for nothing. ``adapts``: it trains adapters. A
    method with neither is not to be had there.
    """

    title: str
    begin: Begin
    reads: tuple[str, ...] = ()
    act: Callable[[MethodSettings], Method | None] | None = None
    adapts: bool = False


@contextmanager
def seqft(model: ByteDecoder, optimizer: Optimizer, settings: MethodSettings) -> Iterator[AtWork]:
    """Nothing: sequential fine-tuning, the baseline."""
    yield AtWork("the optimizer alone", lambda learned: None)


def dense(title: str, method: Callable[[MethodSettings], Method], reads: tuple[str, ...] = ("rank",)) -> Entry:
    """A method that acts on matrices, with new bases at every task."""

    @contextmanager
    def begin(model: ByteDecoder, optimizer: Optimizer, settings: MethodSettings) -> Iterator[AtWork]:
        handle = attach(model, optimizer, method(settings), rank=settings.rank)
        try:
            yield AtWork(", ".join(map(repr, handle.methods)), lambda learned: handle.refresh())
        finally:
            handle.remove()

    return Entry(title, begin, reads, method)


@contextmanager
def ewc(model: ByteDecoder, optimizer: Optimizer, settings: MethodSettings) -> Iterator[AtWork]:
    """Elastic weight consolidation of the tasks learned so far; like all others it sees no pretraining text."""
    handle = attach(model, optimizer, EWC(EWC_LAM))
    try:
        yield AtWork(
            f"{handle.methods[0]!r}, Fisher from {EWC_ROWS} rows of a task",
            lambda learned: handle.finish_task([[row] for row in learned[:EWC_ROWS]], loss),
        )
    finally:
        handle.remove()


def adapters(title: str, name: str, reads: tuple[str, ...] = ("adapter_lr", "adapter_rank")) -> Entry:
    """A method that trains adapters, see ``adapting.ADAPTING``; the weights stay frozen."""

    @contextmanager
    def begin(model: ByteDecoder, optimizer: Optimizer, settings: MethodSettings) -> Iterator[AtWork]:
        if find_spec("peft") is None:
            raise ValueError(f"method {name} needs the package peft: {install('adapters')}")
        from gsr_kernels.continual.adapters import Learner
        from gsr_kernels.continual.adapting import ADAPTING

        adapting = ADAPTING[name]
        learner = Learner(model, settings, adapting)
        described = f"rank {settings.adapter_rank}, lr {settings.adapter_lr:g}, {adapting.described(settings)}"
        yield AtWork(described, lambda learned: None, learner.start_task, learner.scored)

    return Entry(title, begin, reads, adapts=True)


METHODS = {
    "seqft": Entry("SeqFT", seqft, act=lambda settings: None),
    "gsr": dense("GSR", lambda settings: GSR(settings.rho), ("rho", "rank")),
    "gsr-full": dense("GSR-full", lambda settings: GSRFull()),
    "psp": dense("PSP", lambda settings: PSP()),
    "osf": dense("OSF", lambda settings: OSF()),
    "sr": dense("SR", lambda settings: SR()),
    "ewc": Entry("EWC", ewc),
    "seqlora": adapters("SeqLoRA", "seqlora"),
    "inclora": adapters("IncLoRA", "inclora"),
    "o-lora": adapters("O-LoRA", "o-lora"),
    "ps-lora": adapters("PS-LoRA", "ps-lora"),
    "eblora": adapters("EBLoRA", "eblora"),
    "gsr-lora": adapters("GSR-LoRA", "gsr-lora", ("adapter_lr", "adapter_rank", "rho")),
}
ADAPTERS = tuple(name for name, entry in METHODS.items() if entry.adapts)

# ways of learning that are no method but a bound of what a method can reach
BOUNDS = {"perft": "PerFT", "mtl": "MTL"}
TITLES = {name: entry.title for name, entry in METHODS.items()} | BOUNDS


def adapter_rates(names: Sequence[str], settings: MethodSettings) -> str:
    """For a report: the rate of those that train adapters, where there are any."""
    trained = set(ADAPTERS).intersection(names)
    return f", {settings.adapter_lr:g} for adapters (rank {settings.adapter_rank})" if trained else ""


def check_methods(names: tuple[str, ...]) -> None:
    """Raises ValueError for no name, one that is neither a method's nor a bound's, and one that is given twice."""
    if not names:
        raise ValueError(f"method must name at least one of {', '.join(TITLES)}")
    for name in names:
        if name not in TITLES:
            raise ValueError(f"method {name!r} is unknown; there are {', '.join(TITLES)}")
        if names.count(name) > 1:
            raise ValueError(f"method {name} is given twice")
