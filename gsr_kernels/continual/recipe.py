"""Recipes: the command's flags in a YAML file."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gsr_kernels.messages import need

SHIPPED = Path(__file__).with_name("recipes")
# flags whose last value alone counts, each a list with commas
JOINED = ("--seeds", "--order")
# what runs where no model is given
DEMO = "demo"


def expand(argv: Sequence[str], demo: bool = True) -> list[str]:
    """Return the arguments with those of ``--recipe`` before them, so that what is given by hand wins.

    Without a model in either those of the demo's recipe come first, where ``demo`` is true. A recipe's keys are names
    of flags: a list gives a flag several times, a mapping as KEY=VALUE, true stands for a flag without a value. A
    repeatable flag that is given by hand takes the place of the recipe's, ``--set`` comes on top of it. A setting of a
    method that is not among those by hand, or whose own flag is given by hand, is left out.

    Raises FileNotFoundError for neither a file nor a shipped recipe, ValueError for no YAML mapping of such values.
    """
    indices = [index for index, text in enumerate(argv) if text == "--recipe" or text.startswith("--recipe=")]
    all_of = list(argv)
    for last in indices[-1:]:
        _, equals, name = argv[last].partition("=")
        # where a value is missing argparse says so
        for given in [name] if equals else argv[last + 1 : last + 2]:
            all_of = _before(given, all_of)
    return _before(DEMO, all_of) if demo and "--model" not in _names(all_of) else all_of


def _before(name: str, argv: list[str]) -> list[str]:
    by_hand = _names(argv)
    flags: list[str] = []
    for key, value in read_recipe(name).items():
        flag = "--" + str(key).replace("_", "-")
        if flag == "--recipe":
            raise ValueError(f"--recipe {name}: a recipe names no other recipe")
        # settings of methods add up, and a later one wins
        if flag == "--set" and isinstance(value, dict):
            value = {key: each for key, each in value.items() if _holds(str(key), argv, by_hand)}
        if flag not in by_hand or flag == "--set":
            flags += tokens(name, flag, value)
    return [*flags, *argv]


def _holds(key: str, argv: Sequence[str], by_hand: set[str]) -> bool:
    """Return whether a recipe's setting of a method is one of a run with these flags by hand."""
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    parser.add_argument("--method", action="append", default=[])
    methods = re.split("[,+]", ",".join(parser.parse_known_args(argv)[0].method))
    method, _, setting = key.rpartition(".")
    return f"--{setting.replace('_', '-')}" not in by_hand and (methods == [""] or not method or method in methods)


def _names(argv: Sequence[str]) -> set[str]:
    return {text.partition("=")[0] for text in argv if text.startswith("--")}


def read_recipe(name: str) -> dict[str, Any]:
    """Return what a recipe says; see ``expand``."""
    path = Path(name)
    if not path.is_file():
        path = SHIPPED / f"{name}.yaml"
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.yaml")))
        raise FileNotFoundError(f"--recipe {name} is no file, nor one of {shipped}")
    need("--recipe", "yaml", package="pyyaml")
    import yaml

    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--recipe {name}: no YAML: {error}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"--recipe {name}: must map the names of flags to their values")
    return recipe


def tokens(name: str, flag: str, value: Any) -> list[str]:
    """Return a flag and its value as they are written by hand."""
    if value is True:
        return [flag]
    if value is None or value is False:
        return []
    single = [*value.values()] if isinstance(value, dict) else value if isinstance(value, list) else [value]
    if not all(isinstance(each, str | int | float) for each in single):
        raise ValueError(
            f"--recipe {name}: {flag.removeprefix('--')} must be a text, a number, or several, got {value!r}"
        )
    if isinstance(value, list) and flag in JOINED:
        return [flag, ",".join(map(str, value))]
    several = [f"{key}={each}" for key, each in value.items()] if isinstance(value, dict) else single
    return [text for each in several for text in (flag, str(each))]
