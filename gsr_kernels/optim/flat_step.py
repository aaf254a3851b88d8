"""The method's part of a step of an engine that steps flat buffers of many weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gsr_kernels.distributed.step import ShardedStep
from gsr_kernels.messages import some
from gsr_kernels.optim.step import Live, MethodStep
from gsr_kernels.weight import Weight


@dataclass(eq=False)
class FlatStep(MethodStep):
    """Buffers are stepped in one call of the optimizer or one after another: a step ends with the last of them.

    Which ones a call steps its ``param_groups`` say, which an engine changes as it likes.
    """

    def __post_init__(self) -> None:
        """Begin before any buffer is stepped."""
        super().__post_init__()
        self._buffers = {id(weight.parameter) for weight in self.weights}
        # those of the step under way that were not stepped yet
        self._waiting: set[int] = set()
        self._here: set[int] = set()
        self._plans: dict[frozenset[int], ShardedStep | None] = {}

    def begin(self) -> Live | None:
        groups = self.optimizer.param_groups
        places = {id(p): (i, j) for i, group in enumerate(groups) for j, p in enumerate(group["params"])}
        self._here = places.keys() & self._buffers
        if not self._here:
            return None
        if self._here == self._buffers or not self._here <= self._waiting:
            missed = [weight.name for weight in self.weights if id(weight.parameter) in self._waiting - self._here]
            self._waiting, self._begins = set(self._buffers), True
            if missed:
                raise RuntimeError(
                    f"the optimizer's last step left out {some(missed)}, which it held in attach(): handle.remove(), "
                    "then attach() again"
                )
        self._stepped = [weight for weight in self.weights if id(weight.parameter) in self._here]
        for weight in self._stepped:
            weight.place = places[id(weight.parameter)]
        live = super().begin()
        self._begins = self._begins and live is None
        return live

    def rewrite(self, live: Live) -> None:
        key = frozenset(self._here)
        self._sharded = [weight for weight in self._stepped if not weight.whole]
        self._sharded_step = self._plans.get(key)
        super().rewrite(live)
        self._plans[key] = self._sharded_step

    def end(self) -> None:
        self._waiting -= self._here
        if self._here and not self._waiting:
            super().end()

    def _check_held(self, weights: Sequence[Weight]) -> None:
        """Check nothing: an engine changes what its optimizer holds within a step, and ``begin`` finds what is lost."""
