"""Methods of a sequential run, by name, and the bounds of what a method can reach."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import NamedTuple

from gsr_kernels.continual.settings import RunSettings
from gsr_kernels.messages import install
from gsr_kernels.methods import EWC, GSR, OSF, PSP, SR, GSRFull, Method

# how firmly EWC holds (of 1e2, 1e3, 1e4 and 1e5 the best AP of a smaller model with a seed of its own), and how many
# rows of a task say where
EWC_LAM = 1e3
EWC_ROWS = 64


class Entry(NamedTuple):
    """Method: its name in a table, the settings that it reads, and how it acts.

    ``act``: what ``attach`` is given, None for nothing. ``adapts``: it trains adapters, see
    ``adapter_methods.ADAPTER_METHODS``. ``consolidates``: it is EWC.
    """

    title: str
    reads: tuple[str, ...] = ()
    act: Callable[[RunSettings], Method] | None = None
    adapts: bool = False
    consolidates: bool = False

    def described(self, name: str, settings: RunSettings) -> str:
        """Return all settings of the method in words. Raises ValueError where it needs what is not installed."""
        if self.consolidates:
            return f"{EWC(EWC_LAM)!r}, Fisher from {EWC_ROWS} rows of a task"
        if not self.adapts:
            return "the optimizer alone" if self.act is None else repr(self.act(settings))
        if find_spec("peft") is None:
            raise ValueError(f"method {name} needs the package peft: {install('runner')}")
        from gsr_kernels.continual.adapter_methods import ADAPTER_METHODS

        rank, lr, dropout = settings.adapter_rank, settings.adapter_lr, settings.adapter_dropout
        return f"rank {rank}, lr {lr:g}, dropout {dropout:g}, {ADAPTER_METHODS[name].described(settings)}"


ADAPTER = ("adapter_lr", "adapter_rank")
METHODS = {
    "seqft": Entry("SeqFT"),
    "gsr": Entry("GSR", ("rho", "rank"), lambda settings: GSR(settings.rho)),
    "gsr-full": Entry("GSR-full", ("rank",), lambda settings: GSRFull()),
    "psp": Entry("PSP", ("rank",), lambda settings: PSP()),
    "osf": Entry("OSF", ("rank",), lambda settings: OSF()),
    "sr": Entry("SR", ("rank",), lambda settings: SR()),
    "ewc": Entry("EWC", consolidates=True),
    "seqlora": Entry("SeqLoRA", ADAPTER, adapts=True),
    "inclora": Entry("IncLoRA", ADAPTER, adapts=True),
    "o-lora": Entry("O-LoRA", ADAPTER, adapts=True),
    "ps-lora": Entry("PS-LoRA", ADAPTER, adapts=True),
    "eblora": Entry("EBLoRA", ADAPTER, adapts=True),
    "gsr-lora": Entry("GSR-LoRA", (*ADAPTER, "rho"), adapts=True),
}
ADAPTERS = tuple(name for name, entry in METHODS.items() if entry.adapts)

# bounds train each task alone, and all at once
BOUNDS = {"perft": "PerFT", "mtl": "MTL"}
TITLES = {name: entry.title for name, entry in METHODS.items()} | BOUNDS


def adapter_rates(settings: RunSettings) -> str:
    """Return, for a report, the rate of the methods that train adapters, where there are any."""
    trained = set(ADAPTERS).intersection(settings.methods)
    return f", {settings.adapter_lr:g} for adapters (rank {settings.adapter_rank})" if trained else ""


def check_methods(names: Sequence[str], given: Sequence[str]) -> None:
    """Raise ValueError for names that are no list of methods and bounds, and for given settings that none reads."""
    if not names:
        raise ValueError(f"method must name at least one of {', '.join(TITLES)}")
    for name in names:
        if name not in TITLES:
            raise ValueError(f"method {name!r} is unknown; there are {', '.join(TITLES)}")
        if names.count(name) > 1:
            raise ValueError(f"method {name} is given twice")
    for field in given:
        readers = [name for name, entry in METHODS.items() if field in entry.reads]
        if readers and not set(readers).intersection(names):
            raise ValueError(f"{field} is read by {', '.join(readers)}, none of which is in --method {','.join(names)}")
