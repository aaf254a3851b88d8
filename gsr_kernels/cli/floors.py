"""The FLOP and bytes of a step, kernel by kernel, and the time below which a device cannot do it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from gsr_kernels.optim.targets import linear_matrices

# bytes that AdamW reads and writes for each element, its gradient apart: W, m and v, both ways
STATES = {
    "fp32": 24,
    "16-bit": 12,
    "16-bit weight, fp32 states": 20,
    "fp32 master, 16-bit copy": 26,
}


class Kind(NamedTuple):
    """Equal weights: so many ``[d1, d2]``, or of several experts ``[experts, d1, d2]``."""

    weights: int
    d1: int
    d2: int
    experts: int = 1
    # whether tensor parallelism shards the columns
    columns: bool = False


@dataclass(frozen=True)
class Cost:
    """The cost of all matrices of a model: bytes of the bases; FLOP and bytes moved in one optimizer step."""

    bases: int
    flop: int
    moved: int


@dataclass(frozen=True)
class Work:
    """One kernel: every operand read once, every result written once; a multiplication and an addition are 2 FLOP."""

    flop: int
    bytes: int
    # what multiplies: "16-bit", "tf32" or "fp32"
    unit: str = "16-bit"


@dataclass(frozen=True)
class Rates:
    """The rates that a device reaches: TFLOP/s of each unit, and TB/s of memory, bytes read and written."""

    products: Mapping[str, float]
    bandwidth: float

    def floor(self, work: Iterable[Work]) -> float:
        """Return the milliseconds of all kernels in turn, each the longer of its products' and its memory's time."""
        each = (max(one.flop / self.products[one.unit], one.bytes / self.bandwidth) for one in work)
        return sum(each) * 1e-9


def transform(
    d1: int, d2: int, k: int, out_of_span: str, basis: int, gradient: int, unit: str = "16-bit", end: int | None = None
) -> list[Work]:
    """Return the kernels of GSR's transform of one weight ``[d1, d2]``, from ``G`` to ``G'``.

    Args:
        k: directions kept.
        out_of_span: "drop" or "keep".
        basis, gradient: bytes of an element of U, Vh and of G.
        end: bytes that the last product moves for each element instead of G': with ``STATES``, AdamW is in it.

    A first product that is kept (what is outside the span is dropped, and there is an outside) is stored in the
    basis's dtype; the square and the kept forms read G again instead.
    """
    short, long = sorted((d1, d2))
    elements, factors = d1 * d2, basis * k * (d1 + d2)
    end = gradient if end is None else end
    flop = 2 * elements * k
    if out_of_span == "drop" and k < short:
        # Uᵀ G, its product with V, and both sides of the recomposition, with a core of k x k between them
        side, core = basis * k * d2, basis * k * k
        return [
            Work(flop, gradient * elements + basis * k * d1 + side, unit),
            Work(2 * d2 * k * k, 2 * side + core, unit),
            Work(2 * d2 * k * k, 2 * side + core, unit),
            Work(flop, basis * k * d1 + side + end * elements, unit),
        ]
    stored = basis * k * short if out_of_span == "drop" and short < long else 0
    again = 0 if stored else gradient * elements
    return [
        Work(flop, factors + gradient * elements + stored, unit),
        Work(flop, factors + stored + again + end * elements, unit),
    ]


def adamw(elements: int, gradient: int, states: str) -> list[Work]:
    """Return one AdamW step; ``states`` names a row of ``STATES``."""
    return [Work(12 * elements, elements * (gradient + STATES[states]), "fp32")]


def kinds_of(model: nn.Module) -> list[Kind]:
    """Return the weights of a model that attach() matches."""
    shapes = Counter(target.parameter.shape for target in linear_matrices(model))
    return [Kind(count, shape[-2], shape[-1], math.prod(shape[:-2])) for shape, count in shapes.items()]


def cost(kinds: Sequence[Kind], rank: int | None, out_of_span: str, basis_bytes: int, gradient_bytes: int) -> Cost:
    """Return the cost of GSR on all weights; ``basis_bytes`` and ``gradient_bytes`` are of an element of U, Vh, of G.

    ``rank`` is clamped to each matrix's own. Moved are U, Vh and G once for each product that reads them, G' once, and
    what one product leaves to the next: see ``transform``.
    """
    bases = flop = moved = 0
    for count, d1, d2, experts, _ in kinds:
        k = min(d1, d2, rank or d1)
        bases += count * experts * (k * (d1 + d2) * basis_bytes + 4 * k)
        for work in transform(d1, d2, k, out_of_span, basis_bytes, gradient_bytes):
            flop += count * experts * work.flop
            moved += count * experts * work.bytes
    return Cost(bases, flop, moved)
