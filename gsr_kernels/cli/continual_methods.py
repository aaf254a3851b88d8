"""``python -m gsr_kernels continual methods``: methods of a sequential run, their settings, defaults and sources."""

from __future__ import annotations

import argparse

from gsr_kernels.cli import aligned
from gsr_kernels.continual.choose import compose, describe, shown
from gsr_kernels.continual.methods import METHODS, SHARED, find_method
from gsr_kernels.continual.settings import RunSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="methods, also module:Class and o-lora+ps-lora")


def run(args: argparse.Namespace) -> None:
    """Print a table; ValueError for a method that there is not."""
    rows = [["method", "setting", "default", "values", "source"]]
    for name in args.names or METHODS:
        chosen = compose(name, RunSettings())
        titles, sources = [name], [find_method(part).source for part in chosen.parts]
        own = {key: one for key, one in chosen.settings.items() if key not in SHARED or one.field != key}
        for key, one in own.items() or {"": None}.items():
            told = ["", "", ""] if one is None else [key, shown(one.value), describe(one.hint)]
            rows.append([titles.pop() if titles else "", *told, sources.pop(0) if sources else ""])
    print("\n".join(line.rstrip() for line in aligned(rows, (0,) * 5)))
    print(
        f"\nEvery method also has {', '.join(SHARED)}, by default those of the run.\n"
        "--set METHOD.NAME=VALUE gives one of them, --sweep METHOD.NAME=VALUE,VALUE has a run for each value."
    )
