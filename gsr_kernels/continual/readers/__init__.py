"""The layouts that data comes in: ``read`` finds out which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gsr_kernels.continual.examples import Source
from gsr_kernels.continual.metrics import BEFORE
from gsr_kernels.continual.readers import cl_benchmark, jsonl, trace

# the first that finds a task in a folder reads it
LAYOUTS = (jsonl, cl_benchmark, trace)
ORDERS: Mapping[str, tuple[str, ...]] = {**cl_benchmark.ORDERS, **trace.ORDERS}


@dataclass(frozen=True)
class Read:
    """The tasks in the order of training, and those of a named order that the copy lacks."""

    sources: tuple[Source, ...]
    lacking: tuple[str, ...] = ()


def read(folder: Path, order: str | None = None, partial: bool = False, instructed: bool = True) -> Read:
    """The tasks of a folder in any of the layouts.

    Args:
        folder: of JSON lines, in the CL_Benchmark or the TRACE layout.
        order: the name of a published order, or the tasks' names with commas; None: all, in the order of their names.
        partial: go on without those tasks of a published order that the folder lacks.
        instructed: put the benchmark's instruction around a row where it has one.

    Raises:
        FileNotFoundError: no such folder, or no task in it.
        ValueError: an unknown order or task, tasks that are lacking, a malformed row.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"--data {folder} is no folder")
    for layout in LAYOUTS:
        found = layout.find(folder)
        if found:
            break
    else:
        raise FileNotFoundError(
            f"--data {folder} holds no task. It must hold NAME.jsonl files, NAME/train.jsonl with NAME/test.jsonl, "
            "CATEGORY/NAME/{train,test,labels}.json (CL_Benchmark) or NAME/{train,test}.json (TRACE)"
        )
    names, lacking = choose(sorted(found), order, partial)
    if BEFORE in names:
        raise ValueError(f"--data {folder}: no task may be called {BEFORE!r}, the report's own name; call it otherwise")
    return Read(tuple(layout.read_task(name, found[name], instructed) for name in names), lacking)


def choose(there: Sequence[str], order: str | None, partial: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The tasks to train on, and those lacking; see ``read``. Every name is one that is there, whatever its case."""
    if order is None:
        return tuple(there), ()
    spelled = {name.lower(): name for name in there}
    published = order in ORDERS
    wanted = ORDERS[order] if published else tuple(name.strip() for name in order.split(","))
    lacking = tuple(name for name in wanted if name.lower() not in spelled)
    if lacking and not published:
        raise ValueError(
            f"--order {order}: unknown {', '.join(map(repr, lacking))}. The data has {', '.join(there)}; published "
            f"orders are {', '.join(ORDERS)}"
        )
    if lacking and not partial:
        raise ValueError(
            f"--order {order} has {len(wanted)} tasks, and this copy of the data lacks {', '.join(lacking)}: add them, "
            "or go on without them by --partial"
        )
    names = tuple(spelled[name.lower()] for name in wanted if name not in lacking)
    if len(set(names)) < len(names):
        raise ValueError(f"--order {order} names a task twice")
    if not names:
        raise ValueError(f"--order {order}: this copy of the data has none of its tasks; it has {', '.join(there)}")
    return names, lacking
