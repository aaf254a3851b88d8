"""Costs of decompositions beside each other, for plans and progress bars."""

import math
from collections.abc import Sequence

from tqdm import tqdm


def svd_cost(shape: Sequence[int]) -> int:
    """Return the multiplications of one pass ``[.., m, n] x [.., n, n]``: an exact SVD takes some tens of them."""
    return math.prod(shape) * min(shape[-2:])


def svd_bytes(shape: Sequence[int], itemsize: int = 4) -> int:
    """Return the bytes that an exact SVD of ``shape [.., m, n]`` holds at most.

    Counted in tensors of the polar driver: seven of W's, W and its copy in that precision among them, sixteen of the
    short side's.
    """
    *batch, m, n = shape
    return itemsize * math.prod(batch) * (7 * m * n + 16 * min(m, n) ** 2)


def progress(title: str, cost: int, shown: bool = True) -> "tqdm[None]":
    """Return a bar over work that differs in cost: its remaining time is right though the pieces are unlike."""
    line = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    return tqdm(desc=title, total=cost, bar_format=line, leave=False, disable=None if shown else True)
