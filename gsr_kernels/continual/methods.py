"""Methods of a sequential run, by name, and the bounds of what a method can reach."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import gsr_kernels
from gsr_kernels.adapters.merging import How
from gsr_kernels.continual.settings import RunSettings
from gsr_kernels.messages import need
from gsr_kernels.methods import EWC, GSR, OSF, PSP, SR, GSRFull, Method, ModelMethod

# how firmly EWC holds (of 1e2, 1e3, 1e4 and 1e5 the best AP of a smaller model with a seed of its own), and how many
# rows of a task say where
EWC_LAM = 1e3
EWC_ROWS = 64
# rows of a task whose mean gradient EBLoRA begins with
GRADIENT_ROWS = 256


@dataclass(frozen=True)
class DenseMethod:
    """Method on the weights themselves: the settings that it reads, what ``attach`` is given, and whether it is EWC."""

    title: str
    reads: tuple[str, ...] = ("rank",)
    act: Callable[[RunSettings], Method] | None = None
    consolidates: bool = False

    def described(self, settings: RunSettings) -> str:
        """Return all settings of the method in words."""
        if self.consolidates:
            return f"{EWC(EWC_LAM)!r}, Fisher from {EWC_ROWS} rows of a task"
        return "the optimizer alone" if self.act is None else repr(self.act(settings))


@dataclass(frozen=True)
class AdapterMethod:
    """Method on adapters, of PEFT."""

    title: str
    # every task has an adapter of its own, and the last one is trained beside the others; else one for all
    own: bool = True
    # adapters are scored as one, see ``merge``
    how: How = "sum"
    # hold the new adapter beside earlier ones, and how firmly unless the reader says so
    term: str = ""
    lam: float = 0.0
    # GSR acts on the adapter, in its own spectrum
    rescaled: bool = False
    # EBLoRA; its adapter is merged when the task ends
    balanced: bool = False

    @property
    def reads(self) -> tuple[str, ...]:
        """Return the settings that it reads."""
        return ("adapter_lr", "adapter_rank", *(("rho",) if self.rescaled else ()))

    def described(self, settings: RunSettings) -> str:
        """Return all settings of the method in words."""
        rank, lr, dropout = settings.adapter_rank, settings.adapter_lr, settings.adapter_dropout
        how = f"one a task, merged by {self.how}" if self.own else "one for all tasks"
        parts = [f"rank {rank}, lr {lr:g}, dropout {dropout:g}, {how}"]
        if self.term:
            parts.append(f"{self.term}(lam={settings.adapter_lam or self.lam:g})")
        if self.rescaled:
            parts.append(f"AdapterGSR(rho={settings.rho:g}, spectrum='adapter')")
        if self.balanced:
            parts.append(f"EBLoRA(energy=0.99), gradient of {GRADIENT_ROWS} rows, steps scaled by √(width / rank)")
        return ", ".join(parts)

    def act(self, settings: RunSettings, adapters: int) -> ModelMethod | None:
        """Return what acts on the steps of the last of so many adapters; the first needs no term."""
        if self.rescaled:
            return gsr_kernels.AdapterGSR(settings.rho)
        if not self.term or adapters < 2:
            return None
        return getattr(gsr_kernels, self.term)(settings.adapter_lam or self.lam)


DENSE_METHODS = {
    "seqft": DenseMethod("SeqFT", ()),
    "gsr": DenseMethod("GSR", ("rho", "rank"), lambda settings: GSR(settings.rho)),
    "gsr-full": DenseMethod("GSR-full", act=lambda settings: GSRFull()),
    "psp": DenseMethod("PSP", act=lambda settings: PSP()),
    "osf": DenseMethod("OSF", act=lambda settings: OSF()),
    "sr": DenseMethod("SR", act=lambda settings: SR()),
    "ewc": DenseMethod("EWC", (), consolidates=True),
}
# strengths: O-LoRA's public code's, and the PS-LoRA paper's for a long sequence
ADAPTER_METHODS = {
    "seqlora": AdapterMethod("SeqLoRA", own=False),
    "inclora": AdapterMethod("IncLoRA"),
    "o-lora": AdapterMethod("O-LoRA", term="OLoRA", lam=0.5),
    "ps-lora": AdapterMethod("PS-LoRA", how="magnitude", term="PSLoRA", lam=0.1),
    "eblora": AdapterMethod("EBLoRA", balanced=True),
    "gsr-lora": AdapterMethod("GSR-LoRA", own=False, rescaled=True),
}
METHODS: dict[str, DenseMethod | AdapterMethod] = {**DENSE_METHODS, **ADAPTER_METHODS}
# bounds train each task alone, and all at once
BOUNDS = {"perft": "PerFT", "mtl": "MTL"}
TITLES = {name: method.title for name, method in METHODS.items()} | BOUNDS


def check_methods(names: Sequence[str], given: Sequence[str]) -> None:
    """Raise ValueError for names of no methods and bounds, settings that none reads, and adapters without PEFT."""
    for name in names:
        if name not in TITLES:
            raise ValueError(f"method {name!r} is unknown; there are {', '.join(TITLES)}")
        if names.count(name) > 1:
            raise ValueError(f"method {name} is given twice")
        if name in ADAPTER_METHODS:
            need(f"method {name}", "peft")
    for field in given:
        readers = [name for name, method in METHODS.items() if field in method.reads]
        if readers and not set(readers).intersection(names):
            raise ValueError(f"{field} is read by {', '.join(readers)}, none of which is in --method {','.join(names)}")
