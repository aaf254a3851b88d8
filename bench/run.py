"""One run of a case in one setting: its variants predicted from shapes alone, or tested and timed side by side."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from bench.models import Model
from bench.timing import captured, peak_extra_bytes, percentiles, timed
from gsr_kernels.cli.floors import Rates, Work, transform

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
RHO = 0.5
# how the reason begins where a library that one might use instead is not installed
ABSENT = "not measured"


@dataclass(frozen=True)
class Setting:
    """A model's matrices, the directions kept of each (None: all), and the dtypes of bases and gradients by name."""

    model: Model
    rank: int | None = None
    precision: str = "fp16"
    gradient: str = "fp32"

    @property
    def out_of_span(self) -> str:
        """Return the choice of attach()."""
        return "drop" if self.rank is None else "keep"

    @property
    def labels(self) -> dict[str, object]:
        """Return the labels that the rows of this setting share."""
        return {
            "model": self.model.name,
            "shape": f"{len(self.model.matrices)} matrices",
            "dtype": f"{self.gradient} x {self.precision}",
            "rank": self.rank or "full",
            "rho": RHO,
            "out_of_span": self.out_of_span,
        }

    @property
    def gradient_bytes(self) -> int:
        return DTYPES[self.gradient].itemsize

    @property
    def basis_bytes(self) -> int:
        return DTYPES[self.precision].itemsize

    @property
    def unit(self) -> str:
        """Return the unit of a GPU that multiplies."""
        return "fp32" if self.precision == "fp32" else "16-bit"

    def directions(self, d1: int, d2: int) -> int:
        """Return k of one matrix."""
        return min(d1, d2, self.rank or d1)

    def transform(self, d1: int, d2: int, end: int | None = None) -> list[Work]:
        """Return the kernels of one matrix's transform; ``end`` as in ``floors.transform``."""
        k = self.directions(d1, d2)
        return transform(d1, d2, k, self.out_of_span, self.basis_bytes, self.gradient_bytes, self.unit, end)


@dataclass(frozen=True)
class Trial:
    """A variant made ready.

    ``error``, called after a run, is its relative error: over ``tolerance`` it is wrong and is not timed. ``launch`` is
    "eager" or "graph"; on a GPU the first where nothing is said.
    """

    run: Callable[[], object]
    error: Callable[[], float] | None = None
    tolerance: float = 0.0
    launch: str = ""


@dataclass(frozen=True)
class Target:
    """A bound on a variant's time over that of the variant ``to``, or over its own floor.

    ``memory``: over the time that its bytes take, where that is longer than ``to``'s.
    """

    bound: float
    to: str = ""
    at_least: bool = False
    memory: bool = False

    def verdict(self, ratio: float) -> str:
        """Say in one line whether it is met."""
        return judged(f"{ratio:.2f} x {self.to or 'floor'}", ratio, self.bound, self.at_least)


def judged(said: str, value: float, bound: float, at_least: bool = False) -> str:
    """Add to what is said of a value its bound, and whether it is met."""
    met = value >= bound if at_least else value <= bound
    short = bound / value if at_least else value / bound
    outcome = "met" if met else f"missed by {short - 1:.1%}"
    return f"{said}, target {'>=' if at_least else '<='} {bound:.4g}: {outcome}"


Makers = Mapping[str, Callable[[], Trial]]


def untested(variants: Mapping[str, Callable[[], object]]) -> dict[str, Callable[[], Trial]]:
    """Return variants that are timed as they are."""
    return {name: partial(Trial, one) for name, one in variants.items()}


@dataclass
class Run:
    """The conditions of a run. With ``dry`` nothing is computed: rows hold FLOP, bytes and floor alone."""

    setting: Setting
    rates: Rates
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dry: bool = False
    seconds: float = 3.0
    least: int = 5

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def by_plan(self) -> bool:
        """Tell whether the kernels of the step compute it, which take no float32 bases."""
        return self.on_gpu and self.setting.precision != "fp32"

    def trial(
        self, of: Callable[[], object], error: Callable[[], float] | None = None, tolerance: float = 0.0
    ) -> Trial:
        """Return a variant that launches nothing but kernels: as a CUDA graph on a GPU."""
        return Trial(captured(of) if self.on_gpu else of, error, tolerance, "graph" if self.on_gpu else "eager")

    def compare(
        self,
        labels: Mapping[str, object],
        work: Mapping[str, Sequence[Work]],
        make: Callable[[], Makers],
        to: str,
        targets: Mapping[str, Sequence[Target]] | None = None,
        peak: bool = False,
    ) -> Iterator[dict]:
        """Yield a row for every variant of ``work``. Targets bind where the kernels of the step compute.

        Args:
            labels: what the rows are of.
            work: of every variant its kernels, nothing where no formula holds.
            make: makes the variants that this device can run; only called to measure.
            to: the variant whose time the others' ``ratio`` is over.
            peak: also measure the memory that each variant holds at its peak.
        """
        found = {} if self.dry else self._measured(make, peak)
        times = {name: one["p50_ms"] for name, one in found.items() if "p50_ms" in one}
        for name, kernels in work.items():
            row = {**labels, "variant": name, **self._floor(kernels), **found.get(name, {})}
            if name in times:
                if to in times:
                    row |= {"ratio": round(times[name] / times[to], 3), "ratio_to": to}
                row["verdict"] = self._verdict(row, times, (targets or {}).get(name, ()) if self.by_plan else ())
            if name in found or (self.dry and kernels):
                yield row

    def _measured(self, make: Callable[[], Makers], peak: bool) -> dict[str, dict[str, Any]]:
        """Return error, launch and times of the variants that are right, and why the others are of no use."""
        tested = {name: _tested(maker) for name, maker in make().items()}
        found = {name: one for name, (one, _) in tested.items()}
        trials = {name: trial for name, (_, trial) in tested.items() if trial}
        if trials:
            runs = {name: one.run for name, one in trials.items()}
            for name, taken in timed(runs, self.device, self.seconds, self.least).items():
                launch = trials[name].launch or ("eager" if self.on_gpu else "")
                found[name] |= {"launch": launch, **percentiles(taken)}
                if peak:
                    found[name]["extra_mib"] = round(peak_extra_bytes(runs[name], self.device) / 2**20, 3)
            del runs
        # optimizers and their hooks refer to each other: what they hold would stand beside the next comparison
        del tested, trials
        if self.on_gpu:
            collect()
        return found

    def _floor(self, kernels: Sequence[Work]) -> dict[str, object]:
        if not kernels:
            return {}
        flop, moved = sum(one.flop for one in kernels), sum(one.bytes for one in kernels)
        return {"flop": flop, "bytes": moved, "floor_ms": float(f"{self.rates.floor(kernels):.4g}")}

    def _verdict(self, row: Mapping, times: Mapping[str, float], targets: Sequence[Target]) -> str:
        said = []
        for target in targets:
            if target.to and target.to not in times:
                said.append(f"{target.to} was not measured")
                continue
            over = times[target.to] if target.to else row["floor_ms"]
            if target.memory:
                over = max(over, row["bytes"] / self.rates.bandwidth * 1e-9)
            said.append(target.verdict(row["p50_ms"] / over))
        if not said and row.get("floor_ms"):
            said = [f"{row['p50_ms'] / row['floor_ms']:.2f} x floor"]
        return "; ".join(said)


def collect() -> None:
    """Free the memory that nothing needs any more."""
    gc.collect()
    torch.cuda.empty_cache()


def _tested(maker: Callable[[], Trial]) -> tuple[dict[str, Any], Trial | None]:
    """Return a variant's error and the variant, or why it is of no use."""
    found: dict[str, Any] = {}
    try:
        trial = maker()
        if trial.error is not None:
            trial.run()
            found["rel_error"] = float(f"{trial.error():.2e}")
            if not found["rel_error"] <= trial.tolerance:
                return {**found, "failed": f"its error is over {trial.tolerance:.0e}"}, None
        return found, trial
    except ModuleNotFoundError as reason:
        return {**found, "failed": f"{ABSENT}: {reason}"}, None
    except Exception as reason:
        return {**found, "failed": f"{type(reason).__name__}: {reason}".splitlines()[0][:200]}, None
