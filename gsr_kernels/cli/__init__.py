"""Commands of ``gsr-kernels``, one module each, and the values that more than one takes."""

import argparse
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
