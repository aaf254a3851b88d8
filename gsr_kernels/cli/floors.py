"""What a step has to compute and to move, kernel by kernel, and the time below which a device cannot do it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

# bytes that AdamW reads and writes for each entry, its gradient apart: W, m and v, both ways
STATES = {
    "fp32": 24,
    "16-bit": 12,
    "16-bit weight, fp32 states": 20,
    "fp32 master, 16-bit copy": 26,
}


@dataclass(frozen=True)
class Work:
    """One kernel: every operand read once, every result written once; a multiplication and an addition are 2 FLOP.

    ``unit`` is what multiplies: "16-bit", "tf32" or "fp32".
    """

    flop: int
    bytes: int
    unit: str = "16-bit"


@dataclass(frozen=True)
class Rates:
    """What a device reaches: TFLOP/s of each unit, and TB/s of memory, bytes read and written."""

    products: Mapping[str, float]
    bandwidth: float

    def floor(self, work: Iterable[Work]) -> float:
        """Milliseconds: of each kernel the longer of its products' and its memory's time, one kernel after another."""
        each = (max(one.flop / self.products[one.unit], one.bytes / self.bandwidth) for one in work)
        return sum(each) * 1e-9


def transform(
    d1: int, d2: int, k: int, out_of_span: str, basis: int, gradient: int, unit: str = "16-bit", end: int | None = None
) -> list[Work]:
    """GSR's transform of one weight ``[d1, d2]``, from ``G`` to ``G'``.

    Args:
        k: directions kept.
        out_of_span: "drop" or "keep".
        basis, gradient: bytes of a number in U, Vh and in G.
        end: bytes that the last product moves for each entry in the place of G': with ``STATES``, AdamW is in it.

    A first product that is kept (what lies outside the span is dropped, and there is an outside) is stored in the
    basis's dtype; the square and the kept forms read G again instead.
    """
    short, long = sorted((d1, d2))
    entries, factors = d1 * d2, basis * k * (d1 + d2)
    end = gradient if end is None else end
    flop = 2 * entries * k
    if out_of_span == "drop" and k < short:
        # Uᵀ G, its product with V, and both sides of the recomposition, with a core of k x k between them
        side, core = basis * k * d2, basis * k * k
        return [
            Work(flop, gradient * entries + basis * k * d1 + side, unit),
            Work(2 * d2 * k * k, 2 * side + core, unit),
            Work(2 * d2 * k * k, 2 * side + core, unit),
            Work(flop, basis * k * d1 + side + end * entries, unit),
        ]
    stored = basis * k * short if out_of_span == "drop" and short < long else 0
    again = 0 if stored else gradient * entries
    return [
        Work(flop, factors + gradient * entries + stored, unit),
        Work(flop, factors + stored + again + end * entries, unit),
    ]


def adamw(entries: int, gradient: int, states: str) -> list[Work]:
    """One AdamW step; ``states`` names a row of ``STATES``."""
    return [Work(12 * entries, entries * (gradient + STATES[states]), "fp32")]
