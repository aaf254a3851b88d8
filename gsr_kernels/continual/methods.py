"""Methods of a sequential run, by name, and the bounds of what a method can reach."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, get_type_hints

from gsr_kernels.adapters.eblora import EBLoRA
from gsr_kernels.adapters.gsr import AdapterGSR
from gsr_kernels.adapters.merging import How
from gsr_kernels.adapters.terms import OLoRA, PSLoRA, Term
from gsr_kernels.continual.baselines import LwF, Replay
from gsr_kernels.messages import imported
from gsr_kernels.methods import (
    EWC,
    GSR,
    OSF,
    PSP,
    SR,
    AdaptiveOSF,
    Chain,
    GSRFull,
    LwFOwn,
    Method,
    ModelMethod,
    ScheduledOSF,
)
from gsr_kernels.methods.base import TaskMethod

# how firmly EWC holds (of 1e2, 1e3, 1e4 and 1e5 the best AP of a smaller model with a seed of its own), and how many
# rows of a task say where
EWC_LAM = 1e3
EWC_ROWS = 64
# rows of a task whose mean gradient EBLoRA begins with
GRADIENT_ROWS = 256
# settings of the run that may differ by method
SHARED = ("lr", "head_lr", "epochs", "steps", "weight_decay", "warmup", "schedule", "max_grad_norm")
# hooks by which a method on weights acts
ACTING = ("gradient", "constrain", "transform")
# the default of an argument without one
EMPTY = inspect.Parameter.empty
# arguments of a method that the runner itself gives, or that decide no numbers
GIVEN = ("new", "earlier", "adapter", "protected", "backend", "seed")


@dataclass(frozen=True)
class DenseMethod:
    """Method on the weights themselves: what makes it, whose arguments are its settings, and where it comes from."""

    title: str
    makes: tuple[Callable[..., Any], ...] = ()
    source: str = ""
    # the classes in ``strategy`` that learn by it, where it does more than act on the steps
    strategies: tuple[str, ...] = ()
    # a bound learns each task "alone", or all "at once"
    bound: str = ""
    # what it keeps that the strict setting forbids
    keeps: str = ""

    @property
    def fields(self) -> dict[str, str]:
        """Return the fields of the run's settings that it reads, by their names among the method's own settings."""
        return {name: name for name in (*SHARED, *self.of_bases)}

    @property
    def of_bases(self) -> tuple[str, ...]:
        """Return the settings of singular bases that it reads: whoever decomposes by itself says how precisely."""
        made: list[Any] = [make.func if isinstance(make, partial) else make for make in self.makes]
        acting = [one.makes if issubclass(one, TaskMethod) else one for one in made]
        acting = [one for one in acting if issubclass(one, Method)]
        if not acting:
            return ()
        leading = next((one for one in acting if one.uses_basis), acting[0])
        return ("rank", "heads", "precision") if leading.decompose is Method.decompose else ("rank", "heads")

    def joined(self, other: DenseMethod) -> DenseMethod:
        """Return both, one after the other; ValueError where they cannot go together."""
        for one in (self, other):
            if not one.makes:
                raise ValueError(f"{one.title} joins no other method")
        return replace(
            self,
            title=f"{self.title}+{other.title}",
            makes=self.makes + other.makes,
            strategies=self.strategies + other.strategies,
            keeps=" and ".join(dict.fromkeys(filter(None, (self.keeps, other.keeps)))),
        )


@dataclass(frozen=True)
class AdapterMethod:
    """Method on adapters, of PEFT."""

    title: str
    makes: tuple[Callable[..., Any], ...] = ()
    source: str = ""
    # every task has an adapter of its own, and the last one is trained beside the others; else one for all
    own: bool = True
    # adapters are scored as one, see ``merge``
    how: How = "sum"
    # EBLoRA; its adapter is merged when the task ends
    balanced: bool = False
    # see DenseMethod
    bound: str = ""
    keeps: str = ""

    fields: ClassVar[dict[str, str]] = {name: name for name in SHARED} | {
        "lr": "adapter_lr", "rank": "adapter_rank", "dropout": "adapter_dropout", "targets": "adapter_targets"
    }  # fmt: skip

    def joined(self, other: AdapterMethod) -> AdapterMethod:
        """Return the terms of both on one adapter, merged as the second is; ValueError where one is no such term."""
        for one in (self, other):
            if not one.makes or not one.own or one.balanced:
                raise ValueError(f"{one.title} is no term of the loss, and joins no other method")
        return replace(self, title=f"{self.title}+{other.title}", makes=self.makes + other.makes, how=other.how)


GSR_PAPER = "Mitigating Forgetting via Gradient Spectrum Rescaling"
STABILITY = "Stability Matters: Combating Parameter Shifts in Low-Rank Adaptation"
SCULPTING = "Sculpting Subspaces, arXiv 2504.07097"
DENSE_METHODS = {
    "seqft": DenseMethod("SeqFT", source="the optimizer alone"),
    "gsr": DenseMethod("GSR", (GSR,), GSR_PAPER),
    "gsr-full": DenseMethod("GSR-full", (GSRFull,), "this project"),
    "psp": DenseMethod("PSP", (PSP,), "Franke et al. 2024"),
    "osf": DenseMethod("OSF", (AdaptiveOSF,), SCULPTING),
    "osf-uniform": DenseMethod("OSF-uniform", (OSF,), f"{SCULPTING}; a half as in PEFT"),
    "osf-schedule": DenseMethod("OSF-schedule", (ScheduledOSF,), SCULPTING),
    "sr": DenseMethod("SR", (SR,), "Learning Continually by Spectral Regularization, arXiv 2406.06811"),
    "ewc": DenseMethod("EWC", (partial(EWC, lam=EWC_LAM),), "Kirkpatrick et al. 2017", ("Consolidated",)),
    "lwf": DenseMethod("LwF", (LwF,), "Li and Hoiem 2016", ("Distilled",), keeps="the model before the task"),
    "lwf-own": DenseMethod(
        "LwF-own",
        (LwFOwn,),
        "LwF on text of the model's own, as in arXiv 2403.01244",
        ("Rehearsed",),
        keeps="the model before the task",
    ),
    "replay": DenseMethod("Replay", (Replay,), "Rolnick et al. 2019", keeps="rows of earlier tasks"),
}
# strengths: O-LoRA's public code's, and the PS-LoRA paper's for a long sequence
ADAPTER_METHODS = {
    "seqlora": AdapterMethod("SeqLoRA", source="LoRA, arXiv 2106.09685", own=False),
    "inclora": AdapterMethod("IncLoRA", source=STABILITY),
    "o-lora": AdapterMethod("O-LoRA", (OLoRA,), "Orthogonal Subspace Learning for Language Model Continual Learning"),
    "ps-lora": AdapterMethod("PS-LoRA", (partial(PSLoRA, lam=0.1),), STABILITY, how="magnitude"),
    "eblora": AdapterMethod(
        "EBLoRA", (EBLoRA,), "Spectral Imbalance Causes Forgetting, arXiv 2602.00722", balanced=True
    ),
    "gsr-lora": AdapterMethod("GSR-LoRA", (AdapterGSR,), GSR_PAPER, own=False),
}
METHODS: dict[str, DenseMethod | AdapterMethod] = {**DENSE_METHODS, **ADAPTER_METHODS}
# bounds train each task alone, and all at once, on the weights and by adapters
BOUNDS: dict[str, DenseMethod | AdapterMethod] = {
    "perft": DenseMethod("PerFT", source="the optimizer alone", bound="alone"),
    "mtl": DenseMethod("MTL", source="the optimizer alone", bound="at once"),
    "perlora": AdapterMethod("PerLoRA", source="LoRA, arXiv 2106.09685", own=False, bound="alone"),
    "mtl-lora": AdapterMethod("MTL-LoRA", source="LoRA, arXiv 2106.09685", own=False, bound="at once"),
}
TITLES = {name: method.title for name, method in (METHODS | BOUNDS).items()}


def bound_of(title: str) -> str:
    """Return the kind of bound of a title, "alone" or "at once", swept or not; empty for a method."""
    return next((bound.bound for bound in BOUNDS.values() if bound.title == title.partition(" ")[0]), "")


def find_method(name: str) -> DenseMethod | AdapterMethod:
    """Return the method of a name, or of one's own class, ``module:Class``; ValueError where there is none."""
    if name in TITLES:
        return (METHODS | BOUNDS)[name]
    if ":" not in name:
        raise ValueError(f"method {name!r} is unknown; there are {', '.join(TITLES)}, and module:Class of your own")
    made = imported(f"method {name}", name)
    if not isinstance(made, type) or not issubclass(made, Method | ModelMethod) or made is Chain:
        raise ValueError(f"method {name}: it must be a subclass of gsr_kernels.methods.Method or ModelMethod")
    if issubclass(made, Method) and all(getattr(made, hook) is getattr(Method, hook) for hook in ACTING):
        raise ValueError(f"method {name}: it does nothing: define one of {', '.join(ACTING)}")
    if issubclass(made, ModelMethod) and made.remembers:
        raise ValueError(
            f"method {name}: the command keeps nothing of earlier tasks for a class of your own (remembers)"
        )
    return (AdapterMethod if issubclass(made, Term) else DenseMethod)(made.__name__, (made,), "your own")


def arguments(make: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """Return the type and the default of each argument that is a setting; ``EMPTY``: none."""
    made: Any = make.func if isinstance(make, partial) else make
    hints = get_type_hints(getattr(made, "__init__", made))
    return {
        name: (hints.get(name, str), parameter.default)
        for name, parameter in inspect.signature(make).parameters.items()
        if name not in GIVEN and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }
