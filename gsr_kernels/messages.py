"""Phrases of several messages."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def some(names: Iterable[str]) -> str:
    """Join the first three names, and count the others."""
    listed = list(names)
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return (", ".join(listed[:3]) or "nothing") + more


def install(extra: str = "runner") -> str:
    """Return the command that installs the packages of an extra of pyproject.toml."""
    return f"pip install '.[{extra}]' in a checkout of gsr-kernels"


def need(what: str, module: str, extra: str = "runner", package: str | None = None) -> None:
    """Raise ValueError where a module is not there that something needs, of a package of an extra."""
    if find_spec(module) is None:
        raise ValueError(f"{what} needs the package {package or module}: {install(extra)}")


def imported(what: str, name: str) -> Any:
    """Return what ``module:attribute`` names, from the working directory too; ValueError that begins with ``what``."""
    if "" not in sys.path:
        sys.path.insert(0, "")
    module, _, attribute = name.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except Exception as error:
        raise ValueError(f"{what} cannot be imported: {type(error).__name__}: {error}") from error


def first_sentence(error: Exception) -> str:
    """Return the first sentence of an error's message: of some the rest names hundreds of classes."""
    return re.split(r"\.\s|\n", str(error).strip(), maxsplit=1)[0][:200]
