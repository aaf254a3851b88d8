"""The methods of a sequential run, by name: the one table that says what acts between gradients and optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from torch.optim import Optimizer

from gsr_kernels.continual.library import Row
from gsr_kernels.continual.model import ByteDecoder
from gsr_kernels.continual.train import loss
from gsr_kernels.methods import EWC, GSR, OSF, PSP, SR, GSRFull, Method
from gsr_kernels.optim import attach

# how firmly EWC holds (of 1e2, 1e3, 1e4 and 1e5 the best AP of a smaller model with a seed of its own), and how many
# rows of a task say where
EWC_LAM = 1e3
EWC_ROWS = 64


@dataclass(frozen=True)
class MethodSettings:
    """What the methods' own flags say."""

    rho: float = 0.5
    rank: int | float | None = None


# at work from entry to exit; gives what to call, with the rows just learned, before every task but the first
NextTask = Callable[[Sequence[Row]], None]
Begin = Callable[[ByteDecoder, Optimizer, MethodSettings], AbstractContextManager[NextTask]]


class Entry(NamedTuple):
    """A method: its name in a table, and how it begins."""

    title: str
    begin: Begin


@contextmanager
def seqft(model: ByteDecoder, optimizer: Optimizer, settings: MethodSettings) -> Iterator[NextTask]:
    """Nothing: sequential fine-tuning, the baseline."""
    yield lambda learned: None


def dense(method: Callable[[MethodSettings], Method]) -> Begin:
    """A method that acts on matrices, with new bases at every task."""

    @contextmanager
    def begin(model: ByteDecoder, optimizer: Optimizer, settings: MethodSettings) -> Iterator[NextTask]:
        handle = attach(model, optimizer, method(settings), rank=settings.rank)
        try:
            yield lambda learned: handle.refresh()
        finally:
            handle.remove()

    return begin


@contextmanager
def ewc(model: ByteDecoder, optimizer: Optimizer, settings: MethodSettings) -> Iterator[NextTask]:
    """Elastic weight consolidation of the tasks learned so far; like all others it sees no pretraining text."""
    held = EWC(model, EWC_LAM)
    hook = held.attach(optimizer)
    try:
        yield lambda learned: held.consolidate([[row] for row in learned[:EWC_ROWS]], loss)
    finally:
        hook.remove()


METHODS = {
    "seqft": Entry("SeqFT", seqft),
    "gsr": Entry("GSR", dense(lambda settings: GSR(settings.rho))),
    "gsr-full": Entry("GSR-full", dense(lambda settings: GSRFull())),
    "psp": Entry("PSP", dense(lambda settings: PSP())),
    "osf": Entry("OSF", dense(lambda settings: OSF())),
    "sr": Entry("SR", dense(lambda settings: SR())),
    "ewc": Entry("EWC", ewc),
}


# ways of learning that are no method but a bound of what a method can reach
BOUNDS = {"perft": "PerFT", "mtl": "MTL"}
TITLES = {name: entry.title for name, entry in METHODS.items()} | BOUNDS


def check_methods(names: tuple[str, ...]) -> None:
    """Raises ValueError for no name, one that is neither a method's nor a bound's, and one that is given twice."""
    if not names:
        raise ValueError(f"method must name at least one of {', '.join(TITLES)}")
    for name in names:
        if name not in TITLES:
            raise ValueError(f"method {name!r} is unknown; there are {', '.join(TITLES)}")
        if names.count(name) > 1:
            raise ValueError(f"method {name} is given twice")
