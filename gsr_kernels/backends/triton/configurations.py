"""Tile sizes, fixed by architecture, kernel and operand: nothing is searched while a model trains."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from gsr_kernels.backends.dispatch import architecture
from gsr_kernels.backends.triton.tiles import INTERPRETED


@dataclass(frozen=True)
class Configuration:
    """Tiles and compiler options of a kernel, of which ``per_multiprocessor`` blocks are resident side by side."""

    BM: int
    BN: int
    BK: int
    num_warps: int
    num_stages: int
    maxnreg: int | None
    per_multiprocessor: int

    @property
    def sizes(self) -> dict[str, int]:
        """Return the constants of the kernel."""
        return {"BM": self.BM, "BN": self.BN, "BK": self.BK}

    @property
    def options(self) -> dict[str, Any]:
        """Return the options of the compiler."""
        return options(self.num_warps, self.num_stages, self.maxnreg)


# (architecture, kernel, left operand) -> configuration; the left operand is read "as stored", is "converted" in
# registers; or addresses are "unaligned"
CONFIGURATIONS = {
    # two blocks of 128 registers a thread on a multiprocessor: the epilogue of one runs under the products of the other
    (90, "first_product", "as stored"): Configuration(128, 128, 64, 8, 3, 128, 2),
    (90, "second_product", "as stored"): Configuration(128, 128, 64, 8, 3, 128, 2),
    # a left operand in registers needs 16 more of them at a depth of 64, and spills
    (90, "first_product", "converted"): Configuration(128, 128, 32, 8, 4, 128, 2),
    (90, "second_product", "converted"): Configuration(128, 128, 32, 8, 4, 128, 2),
    # loads of 2 bytes need an address each: the slower path takes all registers, for the same tiles
    (90, "first_product", "unaligned"): Configuration(128, 128, 32, 8, 3, None, 1),
    (90, "second_product", "unaligned"): Configuration(128, 128, 32, 8, 3, None, 1),
    # the first product by TMA: 85 FLOP a byte of L2 in place of 64; one block with 230 KB of shared memory at most
    (90, "tma", "as stored"): Configuration(128, 256, 64, 8, 4, None, 1),
    # 163 KB of shared memory and mma.sync: what compiles without a spill
    (80, "first_product", "as stored"): Configuration(128, 128, 32, 8, 3, None, 1),
    (80, "second_product", "as stored"): Configuration(128, 128, 32, 8, 3, None, 1),
    # accumulators are in tensor memory, registers are free
    (100, "first_product", "as stored"): Configuration(128, 128, 64, 8, 3, None, 1),
    (100, "second_product", "as stored"): Configuration(128, 128, 64, 8, 3, None, 1),
    # the interpreter: small matrices have several tiles, and edges
    (0, "first_product", "as stored"): Configuration(64, 32, 32, 4, 1, None, 1),
    (0, "second_product", "as stored"): Configuration(32, 64, 32, 4, 1, None, 1),
    (0, "tma", "as stored"): Configuration(64, 64, 32, 4, 1, None, 1),
}

OLDEST = min(architecture for architecture, _, _ in CONFIGURATIONS if architecture)

# elements a program of the row kernels takes at a time
BLOCK = 1024


def options(num_warps: int = 4, num_stages: int = 3, maxnreg: int | None = None) -> dict[str, Any]:
    """Return compiler options. Fusion of a b + c is named: its default changes between versions of Triton."""
    chosen = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True}
    return chosen if maxnreg is None else {**chosen, "maxnreg": maxnreg}


def configuration(kernel: str, architecture: int, left: str) -> Configuration:
    """Return the row for an architecture or the newest one before it, "as stored" where ``left`` has none.

    Raises ValueError for a GPU older than the table.
    """
    if 0 < architecture < OLDEST:
        raise ValueError(
            f"the kernels need a GPU of compute capability {OLDEST // 10}.0 or newer, this one has "
            f"{architecture // 10}.{architecture % 10}: use backend='torch'"
        )
    known = max(row[0] for row in CONFIGURATIONS if row[0] <= architecture)
    return CONFIGURATIONS.get((known, kernel, left)) or CONFIGURATIONS[known, kernel, "as stored"]


def on(device: torch.device) -> AbstractContextManager[object]:
    """Make a GPU the current one: Triton launches there, wherever its arguments are."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def in_capture(device: torch.device) -> bool:
    """Return whether what is launched goes into a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


@cache
def device_properties(device: torch.device) -> tuple[int, int]:
    """Return the architecture (90 for Hopper, 0 for the interpreter) and the count of multiprocessors."""
    if INTERPRETED or device.type != "cuda":
        return 0, 1
    return architecture(device), torch.cuda.get_device_properties(device).multi_processor_count
