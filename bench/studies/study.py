"""The definition of a study: the methods that it compares, its tasks, its rates and its tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gsr_kernels.continual.methods import ADAPTER_METHODS

BASELINE = "seqft"
# what is left of the score on a text from before the tasks
KEPT = "held-out kept"


@dataclass(frozen=True)
class Method:
    """Way of tuning: its title, its name in the runner (None: the runner lacks it) and the flags beside it."""

    title: str
    runner: str | None
    flags: Mapping[str, Any] = field(default_factory=dict)

    @property
    def adapts(self) -> bool:
        """Return whether it trains adapters."""
        return self.runner in ADAPTER_METHODS


@dataclass(frozen=True)
class Configuration:
    """One way to tune: its title, the runner's name of its method, the rates to try, and the method's settings."""

    title: str
    method: str
    rates: tuple[float, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    # what it keeps beside the weights while it trains
    cost: str = ""


@dataclass(frozen=True)
class Plan:
    """Runs on fresh seeds, fixed before the first of them: the rates of each configuration.

    ``best`` is the rate of the baseline whose learning all are compared at.
    """

    best: float
    rates: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Study:
    """One study.

    Args:
        name: of its folder of results, its marks in the page and its figures.
        about: for the command's help.
        prepare: fills the folder ``work`` with ``model`` and the rows ``tune`` and ``study``; returns the recipe of
            every run, and the conditions to be told.
        methods: by name, in the order of the tables.
        orders: the tasks by the name of the order: "forth", "back", and "alone" for the gate.
        grid: of learning rates; every method begins with three neighbours.
        learning: the tables' name for the mean score right after learning.
        shown: the tables of the page.
        pairs: of each comparison a question, a method and what it is compared with.
        least_gain: by which a task must gain when it is learned alone, a share; None: none is asked for.
        retained: the file in ``work``, without suffix, of a text that is scored and never trained on.
    """

    name: str
    about: str
    prepare: Callable[..., tuple[dict[str, Any], dict[str, Any]]]
    methods: Mapping[str, Method]
    orders: Mapping[str, tuple[str, ...]]
    grid: tuple[float, ...]
    learning: str
    shown: tuple[str, ...]
    pairs: tuple[tuple[str, str, str], ...]
    least_gain: float | None = None
    retained: str | None = None
    # of the frontier: its tasks, the recipe's flags that it changes, and the configurations
    sequence: tuple[str, ...] = ()
    changed: Mapping[str, Any] = field(default_factory=dict)
    configurations: Mapping[str, Configuration] = field(default_factory=dict)
    plan: Plan = Plan(0, {})

    def first_rates(self, method: str) -> tuple[float, ...]:
        """Return the rates that a method begins with."""
        start = 2 if self.methods[method].adapts else 1
        return self.grid[start : start + 3]
