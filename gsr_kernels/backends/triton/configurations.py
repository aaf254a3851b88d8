"""Tile sizes, fixed by architecture, kernel and operand: nothing is searched while a model trains."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from gsr_kernels.backends.triton.tiles import INTERPRETED


@dataclass(frozen=True)
class Configuration:
    """How a tiled kernel is cut and compiled; ``per_multiprocessor`` blocks of it are resident side by side."""

    BM: int
    BN: int
    BK: int
    num_warps: int
    num_stages: int
    maxnreg: int | None
    per_multiprocessor: int

    @property
    def sizes(self) -> dict[str, int]:
        """The constants of the kernel."""
        return {"BM": self.BM, "BN": self.BN, "BK": self.BK}

    @property
    def options(self) -> dict[str, Any]:
        """The options of the compiler."""
        return options(self.num_warps, self.num_stages, self.maxnreg)


# (architecture, kernel, whether the left operand is converted in registers) -> configuration
CONFIGURATIONS = {
    # two blocks of 128 registers a thread on a multiprocessor: the epilogue of one runs under the products of the other
    (90, "first_product", False): Configuration(128, 128, 64, 8, 3, 128, 2),
    # a left operand in registers needs 16 more of them at a depth of 64, and spills
    (90, "first_product", True): Configuration(128, 128, 32, 8, 4, 128, 2),
    (90, "second_product", False): Configuration(128, 128, 64, 8, 3, 128, 2),
    (90, "second_product", True): Configuration(128, 128, 32, 8, 4, 128, 2),
    # 164 KB of shared memory at most: two blocks of three stages of 32
    (80, "first_product", False): Configuration(128, 128, 32, 8, 3, None, 1),
    (80, "first_product", True): Configuration(128, 128, 32, 8, 3, None, 1),
    (80, "second_product", False): Configuration(128, 128, 32, 8, 3, None, 1),
    (80, "second_product", True): Configuration(128, 128, 32, 8, 3, None, 1),
    # accumulators lie in tensor memory, registers are free
    (100, "first_product", False): Configuration(128, 128, 64, 8, 3, None, 1),
    (100, "first_product", True): Configuration(128, 128, 64, 8, 3, None, 1),
    (100, "second_product", False): Configuration(128, 128, 64, 8, 3, None, 1),
    (100, "second_product", True): Configuration(128, 128, 64, 8, 3, None, 1),
    # the interpreter: small matrices have several tiles, and edges
    (0, "first_product", False): Configuration(64, 32, 32, 4, 1, None, 1),
    (0, "first_product", True): Configuration(64, 32, 32, 4, 1, None, 1),
    (0, "second_product", False): Configuration(32, 64, 32, 4, 1, None, 1),
    (0, "second_product", True): Configuration(32, 64, 32, 4, 1, None, 1),
}

# elements a program of the row kernels takes at a time
BLOCK = 1024


def options(num_warps: int = 4, num_stages: int = 3, maxnreg: int | None = None) -> dict[str, Any]:
    """Compiler options. Fusion of a b + c is asked for by name: its default changes between versions of Triton."""
    chosen = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True}
    return chosen if maxnreg is None else {**chosen, "maxnreg": maxnreg}


def configuration(kernel: str, architecture: int, converted: bool) -> Configuration:
    """The row of the table for an architecture, or for the newest one before it."""
    known = max(row[0] for row in CONFIGURATIONS if row[0] <= architecture)
    return CONFIGURATIONS[known, kernel, converted]


@cache
def device_properties(device: torch.device) -> tuple[int, int]:
    """Architecture (90 for Hopper, 0 for the interpreter) and number of multiprocessors."""
    if INTERPRETED or device.type != "cuda":
        return 0, 1
    properties = torch.cuda.get_device_properties(device)
    return 10 * properties.major + properties.minor, properties.multi_processor_count
