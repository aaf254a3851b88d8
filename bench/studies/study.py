"""The definition of a study: its model and tasks, what is compared on its frontier, and its tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

BASELINE = "seqft"
# what is left of the score on a text from before the tasks
KEPT = "held-out kept"


@dataclass(frozen=True)
class Configuration:
    """One way to tune: its title, the runner's name of its method, the rates to try, and the method's settings."""

    title: str
    method: str
    rates: tuple[float, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    # what it holds beside what SeqFT holds, in multiples of the weights
    memory: float = 0


@dataclass(frozen=True)
class Plan:
    """Runs on fresh seeds, fixed before the first of them: the rates of each configuration.

    ``best`` is the rate of the baseline whose learning all are compared at. ``own`` says that AP at the best rate of
    each is compared by the plan too. What was ``added`` once the others had been seen is in no family of tests with
    them.
    """

    best: float
    rates: Mapping[str, tuple[float, ...]]
    own: bool = False
    added: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """One study.

    Args:
        name: of its folder of results, its marks in the pages and its figures.
        about: for the command's help.
        prepare: fills the folder ``work`` with ``model`` and the rows ``tune`` and ``study``; returns the recipe of
            every run, and the conditions to be told.
        tasks: in the order forth.
        configurations: by name, in the order of the tables.
        plan: of the fresh seeds.
        recipe: flags that differ from the recipe.
        retained: the file in ``work``, without suffix, of a text that is scored and never trained on.
        gone: titles of configurations whose code went when they had not helped, by name.
        earlier: the study's first form, whose runs are committed.
    """

    name: str
    about: str
    prepare: Callable[..., tuple[dict[str, Any], dict[str, Any]]]
    tasks: tuple[str, ...]
    configurations: Mapping[str, Configuration]
    plan: Plan
    earlier: Earlier
    recipe: Mapping[str, Any] = field(default_factory=dict)
    retained: str | None = None
    gone: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Earlier:
    """Comparison of methods, each at the rate that one tuning seed chose, on eight fresh seeds.

    Args:
        methods: titles by name, in the order of the tables.
        learning: the tables' name for the mean score right after learning.
        shown: the tables of the appendix.
        pairs: of each comparison a question, a method and what it is compared with.
        adapters: the methods that train adapters.
        least_gain: by which a task must gain when it is learned alone, a share; None: none is asked for.
    """

    methods: Mapping[str, str]
    learning: str
    shown: tuple[str, ...]
    pairs: tuple[tuple[str, str, str], ...]
    adapters: tuple[str, ...] = ()
    least_gain: float | None = None
