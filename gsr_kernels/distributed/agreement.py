"""Decisions that all ranks of some layouts take together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

from gsr_kernels.distributed.layout import Layout

T = TypeVar("T")


def common_layout(layouts: Sequence[Layout]) -> Layout:
    """Return a layout whose ranks are all that hold any of these; ValueError where groups of ranks are disjoint."""
    widest = max(layouts, key=lambda layout: len(layout.ranks))
    apart = [one for one in _one_a_mesh(layouts) if not set(one.ranks) <= set(widest.ranks)]
    if apart:
        raise ValueError(
            f"bases: some weights are on the ranks {sorted(apart[0].ranks)} and others on {sorted(widest.ranks)}. One "
            "directory takes them from a group that holds all: put them on one mesh, or leave bases= out"
        )
    return widest


def all_ranks_agree(flag: bool, layouts: Sequence[Layout]) -> bool:
    """Return True if the flag is set on every rank of these layouts; all of them must call."""
    # the smaller first: a larger group then hears what ranks within it agreed on
    for layout in sorted(_one_a_mesh(layouts), key=lambda layout: len(layout.ranks)):
        votes = torch.tensor(int(flag), dtype=torch.int32, device=layout.device)
        dist.all_reduce(votes, dist.ReduceOp.MIN, group=layout.group)
        flag = bool(votes.item())
    return flag


def equal_on_all_ranks(value: object, layouts: Sequence[Layout]) -> bool:
    """Return True if all ranks of these layouts give the same value; all of them must call."""
    same = True
    # in one order on all ranks, since groups may overlap
    for layout in sorted(_one_a_mesh(layouts), key=lambda layout: sorted(layout.ranks)):
        values: list[object] = [None] * len(layout.ranks)
        dist.all_gather_object(values, value, group=layout.group)
        same = same and all(one == value for one in values)
    return all_ranks_agree(same, layouts)


def is_rank0(layouts: Sequence[Layout]) -> bool:
    """Return True on the rank that reports and writes for all."""
    return all(layout.index == 0 for layout in layouts)


def on_rank0(act: Callable[[], None], layouts: Sequence[Layout]) -> None:
    """Run ``act`` on the first rank while the others wait; where it fails all of them raise."""
    run_on_all_ranks(act if is_rank0(layouts) else lambda: None, layouts)


def run_on_all_ranks(act: Callable[[], T], layouts: Sequence[Layout]) -> T:
    """Return the result of ``act`` on this rank; all ranks of these layouts must call.

    Where it fails on one, that rank raises its error and all others RuntimeError, so that none waits for it.
    """
    problem: Exception | None = None
    try:
        result = act()
    except Exception as error:
        problem = error
    if not all_ranks_agree(problem is None, layouts):
        raise problem or RuntimeError("another rank has failed in what all of them do together; it says why")
    return result


def _one_a_mesh(layouts: Sequence[Layout]) -> list[Layout]:
    return list({tuple(sorted(one.ranks)): one for one in layouts if one.mesh is not None}.values())
