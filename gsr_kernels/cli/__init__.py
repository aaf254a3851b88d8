"""Commands of ``gsr-kernels``, one module each, and the values and tables that more than one has."""

import argparse
from collections.abc import Iterable, Sequence
from contextlib import suppress

import torch

from gsr_kernels.options import RANK


def rank_of(text: str) -> int | float:
    """Parse a number of directions, or a share; their ranges are checked where they are used."""
    for number in (int, float):
        with suppress(ValueError):
            return number(text)
    raise argparse.ArgumentTypeError(f"rank must be {RANK}, got {text!r}")


def device_of(text: str) -> str:
    """Check that this torch can compute on a device."""
    try:
        torch.zeros(1, device=text).item()
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no device here ({str(error).splitlines()[0]})") from error
    return text


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print columns as wide as their longest entry, the first to the left and the others to the right."""
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines)]
    for first, *others in lines:
        print(first.ljust(widths[0]), *(text.rjust(width) for text, width in zip(others, widths[1:])))
