"""``python -m gsr_kernels bench``: the costs of the method on your own device, beside its floor and its peers."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

# of a checkout, beside the package
FOLDER = Path(__file__).parents[2] / "bench"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    if not FOLDER.is_dir():
        parser.error(
            "the cases are in the folder bench/ of the project's sources, which an installed package does not hold: "
            "call this from a checkout, or after `pip install --editable .` in one"
        )
    runner().add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Measure and print row after row, and add them to a CSV; see ``bench/runner.py`` for what it refuses."""
    runner().run(args)


def runner() -> ModuleType:
    """Return the module of the checkout that runs the cases."""
    if str(FOLDER.parent) not in sys.path:
        sys.path.append(str(FOLDER.parent))
    return import_module("bench.runner")
