"""What a sequential run measures, whatever model it trains."""

from __future__ import annotations

from dataclasses import dataclass, field

from gsr_kernels.continual.methods import BOUNDS
from gsr_kernels.continual.metrics import ResultMatrix

# the singular values of some weights, descending, by parameter name
Spectra = dict[str, list[float]]


@dataclass
class Results:
    """Measured results. ``matrices``: of every method and bound, by title, one a seed.

    ``score`` says what a score is. ``spectra`` belongs to the first seed: of each method, by title, those after every
    task and those ``BEFORE``.
    """

    score: str
    matrices: dict[str, list[ResultMatrix]]
    spectra: dict[str, dict[str, Spectra]] = field(default_factory=dict)
    seconds: float = 0.0

    def seeds(self) -> int:
        """How many are done."""
        return min(len(each) for each in self.matrices.values())

    def methods(self) -> dict[str, list[ResultMatrix]]:
        """The matrices without the bounds'."""
        return {title: each for title, each in self.matrices.items() if title not in BOUNDS.values()}
