"""The FLOP and bytes of a step, kernel by kernel, and the time below which a device cannot do it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

# bytes that AdamW reads and writes for each element, its gradient apart: W, m and v, both ways
STATES = {
    "fp32": 24,
    "16-bit": 12,
    "16-bit weight, fp32 states": 20,
    "fp32 master, 16-bit copy": 26,
}


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
