"""The processes that torchrun started to make one run together; without it this one is alone, and is the first."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")

# for a rank that is gone unnoticed: torchrun ends the others at once. Others may score programs meanwhile
TIMEOUT = timedelta(hours=2)


class FailedElsewhere(SystemExit):
    """Another rank has failed, and says why."""


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes of torchrun in one group, each with a GPU, where there are any; ValueError for too few."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    ours = not dist.is_initialized()
    if ours:
        if "LOCAL_RANK" not in os.environ:
            raise ValueError("WORLD_SIZE is set and LOCAL_RANK is not: start the processes by torchrun")
        gpus, local = torch.cuda.device_count(), int(os.environ["LOCAL_RANK"])
        if gpus:
            if local >= gpus:
                raise ValueError(f"torchrun --nproc-per-node must be at most {gpus}, the GPUs that this machine has")
            torch.cuda.set_device(local)
        store, index, size = next(dist.rendezvous("env://"))
        # on one machine torchrun keeps its store, where the addresses of processes before a restart still stand
        if os.environ.get("LOCAL_WORLD_SIZE") == str(size):
            store = dist.PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        # objects travel by gloo
        backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
        dist.init_process_group(backend, store=store, rank=index, world_size=size, timeout=TIMEOUT)
    with warnings.catch_warnings():
        if not first():
            warnings.simplefilter("ignore")
        yield
    # not after an error: the others may be at work, and torchrun ends them
    if ours:
        dist.barrier()
        dist.destroy_process_group()


def world() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the index of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def first() -> bool:
    """Return True on the one that writes, prints and shows bars."""
    return rank() == 0


def gathered(value: T) -> list[T]:
    """Return the value of every rank; all of them must ask."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


def run_on_all_ranks(act: Callable[[], T]) -> T:
    """Run ``act``, which exchanges nothing, and return its result on this rank; all must ask.

    Where it fails on some ranks, the first of them raises what it met, and all others FailedElsewhere.
    """
    try:
        found, problem = act(), None
    except Exception as error:
        problem = error
    failed = gathered(problem is not None)
    if problem is not None and failed.index(True) == rank():
        raise problem
    if any(failed):
        raise FailedElsewhere(2)
    return found


def on_rank0(act: Callable[[], T]) -> T:
    """Run ``act`` on the first rank, and return its result on all; where it fails there, it fails everywhere."""
    found = [run_on_all_ranks(act if first() else lambda: None)]
    if world() > 1:
        dist.broadcast_object_list(found, src=0)
    return found[0]  # type: ignore[return-value]
