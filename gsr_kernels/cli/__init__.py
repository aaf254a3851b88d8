"""Commands of ``gsr-kernels``, one module each, and the values and tables that more than one has."""

import argparse
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from gsr_kernels.options import RANK


def rank_of(text: str) -> int | float:
    """Parse a number of directions, or a share; their ranges are checked where they are used."""
    for number in (int, float):
        with suppress(ValueError):
            return number(text)
    raise argparse.ArgumentTypeError(f"rank must be {RANK}, got {text!r}")


def path_of(text: str) -> Path:
    """Return a path; an empty one would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("a path is wanted, got ''")
    return Path(text)


def device_of(text: str) -> str:
    """Check that this torch can compute on a device."""
    try:
        torch.zeros(1, device=text).item()
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no device here ({str(error).splitlines()[0]})") from error
    return text


def aligned(rows: Sequence[Sequence[str]], names: Sequence[int] = (0,), cell: int = 0) -> list[str]:
    """Return rows as lines: columns of names, of such widths at least, to the left, cells to the right."""
    widest = [max(map(len, column)) for column in zip(*filter(None, rows))]
    least = [*names, *[cell] * (len(widest) - len(names))]
    sides = "<" * len(names) + ">" * (len(widest) - len(names))
    widths = [f"{side}{max(pair)}" for side, *pair in zip(sides, least, widest)]
    return [" ".join(f"{text:{width}}" for text, width in zip(row, widths)) for row in rows]
