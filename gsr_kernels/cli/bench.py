"""``python -m gsr_kernels bench``: what the method costs on your own device, beside its floor and its peers."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

# the folder bench/ of a checkout; an installed package carries it under this name
PACKAGE = "gsr_kernels.bench"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    suite().add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Measures and prints row after row, and adds them to a CSV; see ``bench/command.py`` for what it refuses."""
    suite().run(args)


def suite() -> ModuleType:
    """The module of the command, wherever its package lies."""
    if PACKAGE not in sys.modules and find_spec(PACKAGE) is None:
        folder = Path(__file__).parents[2] / "bench"
        spec = spec_from_file_location(PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)])
        assert spec is not None and spec.loader is not None
        sys.modules[PACKAGE] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[PACKAGE])
    return import_module(f"{PACKAGE}.command")
