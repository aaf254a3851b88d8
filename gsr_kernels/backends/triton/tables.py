"""Tables of tiles, one a program, and of matrices that share a launch: plain arithmetic."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

# tiles of so many rows are taken column by column, so that the programs running side by side share what they read
BAND = 8


def tile_table(matrices: Sequence[int], shapes: Sequence[tuple[int, int]], BM: int, BN: int) -> npt.NDArray[np.int32]:
    """Every tile of every matrix once, ``[tiles, 3]``: matrix, row and column of the tile in units of tiles."""
    parts = []
    for matrix, (rows, columns) in zip(matrices, shapes):
        down, across = -(-rows // BM), -(-columns // BN)
        row, column = (axis.ravel() for axis in np.indices((down, across), dtype=np.int32))
        order = np.lexsort((row, column, row // BAND))
        parts.append(np.stack([np.full(row.size, matrix, np.int32), row[order], column[order]], axis=1))
    return np.concatenate(parts) if parts else np.empty((0, 3), np.int32)


def pack(keys: Sequence[Hashable], sizes: Sequence[int], budget: int) -> Iterator[tuple[int, int]]:
    """Ranges [start, end) of neighbours with one key whose sizes together stay under the budget.

    What is larger than the budget by itself stands alone.
    """
    start, used = 0, 0
    for i, (key, size) in enumerate(zip(keys, sizes)):
        if i > start and (key != keys[start] or used + size > budget):
            yield start, i
            start, used = i, 0
        used += size
    if keys:
        yield start, len(keys)
