"""Resuming a run: the flags that it was begun with, what may be added to it, and what must be as it was."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gsr_kernels.continual.folder import CONFIG
from gsr_kernels.continual.recipe import expand
from gsr_kernels.continual.settings import RunSettings, flags

# parts of it that say where a run began, or went on
BEGUN = ("arguments", "directory", "versions", "machine", "threads")
# files of a run, by which one is known that lacks its configuration
OWN = ("work", "results.json", "table.txt")
# flags that are paths, or may be
PATHS = ("data", "model", "retain")
# flags that add up from command to command
GATHERED = ("set", "sweep")
# settings that only grow
GROWS = ("methods", "seeds", "first_seed")


def read_run(folder: Path) -> dict[str, Any]:
    """Return the configuration of the run in a folder, empty where there is none.

    Raises ValueError for a run without one, or for one that cannot be read.
    """
    file = folder / CONFIG
    if not file.is_file():
        if found := [name for name in OWN if (folder / name).exists()]:
            raise ValueError(f"--resume: {folder} holds {', '.join(found)} and no {CONFIG}: give another folder")
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        return {**{key: config[key] for key in (*BEGUN, "settings")}, **config}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--resume: {file} is no configuration of a run ({error}): give another folder") from error


def all_flags(
    parse: Callable[[Sequence[str]], argparse.Namespace], arguments: Sequence[str], before: Mapping[str, Any]
) -> argparse.Namespace:
    """Return the flags of a command, with its recipe's; what it leaves out is as in the commands of ``before``."""
    commands = [*([before, *before.get("resumed", ())] if before else []), {"arguments": arguments, "directory": ""}]
    merged = argparse.Namespace()
    for number, command in enumerate(commands):
        layer = parse(expand(command["arguments"][1:], demo=number == 0))
        for name in PATHS:
            setattr(layer, name, _found(getattr(layer, name), command["directory"]))
        for name, value in vars(layer).items():
            if name in GATHERED:
                setattr(merged, name, [*getattr(merged, name, ()), *(value or ())])
            elif value is not None or name not in merged:
                setattr(merged, name, value)
    return merged


def grow(args: argparse.Namespace, methods: tuple[str, ...], before: Mapping[str, Any]) -> tuple[str, ...]:
    """Add the seeds and methods of the settings before, which are added to and never taken away; return the methods."""
    old = _numbers(before["seeds"], before["first_seed"])
    numbers = [*old, *(number for number in _numbers(args.seeds or 1, args.first_seed or 0) if number not in old)]
    args.seeds, args.first_seed = tuple(numbers), None
    # as one writes them who has them all from the start
    if sorted(numbers) == [*range(min(numbers), max(numbers) + 1)]:
        args.seeds, args.first_seed = len(numbers), min(numbers)
    return (*before["methods"], *(name for name in methods if name not in before["methods"]))


def _numbers(seeds: int | Sequence[int], first: int) -> Sequence[int]:
    return range(first, first + seeds) if isinstance(seeds, int) else seeds


def _found(path: Any, directory: str) -> Any:
    """Return a path where a command of another directory found it, unless it is here; several of them likewise."""
    if path is None or isinstance(path, list):
        return path and [_found(one, directory) for one in path]
    there = Path(directory, path)
    return path if Path(path).exists() or not there.exists() else type(path)(there)


def _compared(described: Any) -> Any:
    # of rows not where they came from, but what they are
    if not isinstance(described, dict):
        return described
    return {key: value for key, value in described.items() if key != "about"}


def check_same(before: Mapping[str, Any], config: Mapping[str, Any], folder: Path) -> list[str]:
    """Return what has changed and may; ValueError, naming what differs, where a run is another than ``before``."""
    now = json.loads(json.dumps(config))
    # a folder of before a setting came was made as its default says
    were = {"processes": 1} | {each.name: each.default for each in flags(RunSettings)}
    before = {"model": now["model"], **before, "settings": were | before.get("settings", {})}
    free = {each.name: each.metadata["free"] for each in flags(RunSettings)}
    changed = []
    for part in ("settings", "model", "methods", "retained", "tasks"):
        old, new = before.get(part, {}), now[part]
        for key in {**old, **new}:
            was, is_now = (_compared(each.get(key)) for each in (old, new))
            new_here = part in ("methods", "tasks") and key not in old
            if was == is_now or new_here or (part == "settings" and key in GROWS):
                continue
            told = f"{part} {key} was {was!r} in {folder} and is {is_now!r} now"
            if not free.get(key):
                raise ValueError(f"--resume: {told}")
            changed.append(f"{told}: {free[key]}")
    for part in ("tasks", "retained"):
        was, is_now = [*before.get(part, {})], [*now[part]]
        if is_now[: len(was)] != was:
            raise ValueError(
                f"--resume: the order of {part} was {', '.join(was)} in {folder} and is {', '.join(is_now)} now; "
                "new tasks come last, by --order"
            )
    return changed
