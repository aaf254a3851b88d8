"""The way in which a machine computes a step: each is checked on it, those that pass are timed, the answer is kept."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import version

import torch
import torch.distributed as dist
from tqdm import tqdm

from gsr_kernels.io.decisions import Decisions, name_of

# Triton's grouped products, cuBLAS's with kernels around them, torch alone, which needs no check. Behind torch, since
# they are not taken untimed: Triton's with the first product by TMA, and cuBLAS's with the second one by CUTLASS
WAYS = ("triton", "cublas", "torch", "tma", "cutlass")
# seconds for all timing of one call
BUDGET = 3.0
# as which a check fails that found no room on the GPU
NO_MEMORY = torch.OutOfMemoryError.__name__
# runs of a way before those that count, and those
WARM, RUNS = 2, 10

decisions = Decisions("steps.json")
# the keys that all ranks of this job decided together
_agreed: set[str] = set()


@dataclass(frozen=True)
class Case:
    """One kind of step, and the largest matrix of it.

    Args:
        op: "step" or "update", see ``dispatch``.
        gradient, basis: the dtypes of G, and of U and Vh.
        shape: (d1, d2, k).
        out_of_span: "drop" or "keep".
    """

    op: str
    gradient: torch.dtype
    basis: torch.dtype
    shape: tuple[int, int, int]
    out_of_span: str

    @property
    def key(self) -> str:
        """Return the name of the decision, which matrices between the same powers of two share."""
        d1, d2, k = self.shape
        dtypes = (str(dtype).removeprefix("torch.") for dtype in (self.gradient, self.basis))
        side = "square" if d1 == d2 else "tall" if d1 > d2 else "wide"
        sizes = (str(1 << (n - 1).bit_length()) for n in self.shape)
        whole = "whole" if k == min(d1, d2) else "truncated"
        return " ".join((self.op, *dtypes, self.out_of_span, side, whole, *sizes))


@dataclass(frozen=True)
class Verdict:
    """Seconds of the ways that passed their check, none where there was no time, and why the others did not pass."""

    seconds: Mapping[str, float] = field(default_factory=dict)
    wrong: Mapping[str, str] = field(default_factory=dict)

    @property
    def backend(self) -> str:
        """Return the fastest way, or the first that is right."""
        right = [way for way in self.seconds or WAYS if way not in self.wrong]
        return min(right, key=lambda way: self.seconds.get(way, 0.0))

    @property
    def reason(self) -> str:
        """Return the measurement in words."""
        times = ", ".join(f"{way} {1e3 * took:.3g} ms" for way, took in self.seconds.items()) or "not timed"
        return "; ".join((f"measured here: {times}", *(f"{way} is wrong: {why}" for way, why in self.wrong.items())))


@cache
def machine(device: torch.device) -> str:
    """Return the name of a GPU and of what runs on it."""
    return name_of(device, f"triton {version('triton')}")


def verdicts(machine: str) -> dict[str, Verdict]:
    """Return what was decided on a machine about kinds of step, by key."""
    kept = {key: _read(found) for key, found in decisions.known(machine).items()}
    return {key: found for key, found in kept.items() if found is not None}


def verdict(machine: str, case: Case) -> Verdict | None:
    """Return what was decided on a machine about a kind of step, None if nothing was."""
    return _read(decisions.known(machine).get(case.key))


def _read(found: object) -> Verdict | None:
    # what is kept may be damaged, or another version's
    if not isinstance(found, dict) or found.keys() != {"seconds", "wrong"}:
        return None
    return Verdict(**found) if set(found["seconds"]) <= set(WAYS) else None


def choose(
    machine: str,
    cases: Iterable[Case],
    check: Callable[[str, Case], str | None],
    clock: Callable[[str, Case], float],
    budget: float = BUDGET,
) -> dict[str, Verdict]:
    """Decide about every kind of step that nothing was decided about, and return the verdicts by key.

    A way that fails its check is never used, and a warning says so.

    Args:
        machine: see ``machine``.
        cases: what will be stepped; of one key the largest is timed.
        check: returns why a way is wrong for a kind of step, empty where it is right, None where there is no such way.
        clock: returns the seconds that a way takes.
        budget: seconds of timing, the largest matrices first; what it does not reach is only checked, and timed by
            another process. What is compiled for it does not count.
    """
    largest: dict[str, Case] = {}
    for case in sorted(cases, key=lambda case: (-math.prod(case.shape), case.key)):
        largest.setdefault(case.key, case)
    missing = [case for case in largest.values() if verdict(machine, case) is None]
    for case in tqdm(missing, desc="checking and timing kernels", unit="kind", disable=not missing):
        checked = {way: _checked(check, way, case) for way in WAYS if way != "torch"}
        wrong = {way: why for way, why in checked.items() if why}
        seconds: dict[str, float] = {}
        if budget > 0:
            seconds = {way: _timed(clock, way, case) for way in WAYS if checked.get(way, "") == ""}
            budget -= (WARM + RUNS) * sum(filter(math.isfinite, seconds.values()))
        for way, why in wrong.items():
            warnings.warn(
                f"gsr_kernels: backend {way!r} is wrong on this machine and is not used for '{case.key}': {why}. "
                "Please report it with the output of 'gsr-kernels info'",
                stacklevel=2,
            )
        # what lacked memory may have it in the next process
        lacking = any(NO_MEMORY in why for why in wrong.values()) or not all(map(math.isfinite, seconds.values()))
        decisions.keep(machine, {case.key: asdict(Verdict(seconds, wrong))}, on_disk=bool(seconds) and not lacking)
    return {key: found for key, case in largest.items() if (found := verdict(machine, case))}


def choose_on_all_ranks(
    device: torch.device, cases: Iterable[Case], choose: Callable[[list[Case]], dict[str, Verdict]]
) -> None:
    """Let the first rank of each node ``choose``, and have all ranks take the same; all of them must call.

    What is wrong on one node is used on none, and the slowest node's time counts. From then on this process uses no
    decision but those that all ranks know.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        choose(list(cases))
        return
    wanted: list[list[Case]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(wanted, list(cases))
    of_all = list(dict.fromkeys(case for some in wanted for case in some))
    leads = int(os.environ.get("LOCAL_RANK", dist.get_rank())) == 0
    found: list[dict[str, Verdict]] = [{} for _ in wanted]
    dist.all_gather_object(found, choose(of_all) if leads else {})
    known = decisions.known(machine(device))
    for key in [key for key in known if key not in _agreed]:
        del known[key]
    for key in dict.fromkeys(case.key for case in of_all):
        verdicts = [one[key] for one in found if key in one]
        ways = set.intersection(*(set(one.seconds) for one in verdicts))
        seconds = {way: max(one.seconds[way] for one in verdicts) for way in WAYS if way in ways}
        known[key] = asdict(Verdict(seconds, {way: why for one in verdicts for way, why in one.wrong.items()}))
        _agreed.add(key)


def _checked(check: Callable[[str, Case], str | None], way: str, case: Case) -> str | None:
    try:
        return check(way, case)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _timed(clock: Callable[[str, Case], float], way: str, case: Case) -> float:
    # without the memory for it, say, nothing is known of its speed
    try:
        return clock(way, case)
    except RuntimeError:
        return math.inf
