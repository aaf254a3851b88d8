"""Signals that end a run: while it trains at the step's end, with a checkpoint, else at once, where no file is torn."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from gsr_kernels.continual.ranks import world

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StoppedError(SystemExit):
    """The run was told to end; its code is the shell's for the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.name = signal.Signals(number).name


class _Heard:
    """Signal that this process has heard, 0 for none, and whether it waits for the end of a step."""

    number = 0
    waits = False


@contextmanager
def listening() -> Iterator[None]:
    """Take SIGTERM and SIGINT as the wish to end, and a second one of them as the end."""
    # others get no signals
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.signal(each, _hear) for each in SIGNALS}
    try:
        yield
    finally:
        _Heard.number = 0
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def until_the_step_ends() -> Iterator[None]:
    """Have what trains ask by itself, at the end of its steps."""
    _Heard.waits = True
    try:
        yield
    finally:
        _Heard.waits = False


def told_to_stop() -> int:
    """Return the signal that any rank has heard, 0 for none; all must ask."""
    if world() == 1:
        return _Heard.number
    number = torch.tensor(_Heard.number)
    dist.all_reduce(number, dist.ReduceOp.MAX)
    return int(number)


def stop_if_told() -> None:
    """Raise StoppedError where any rank has heard a signal; all must ask, where nothing is lost."""
    if number := told_to_stop():
        raise StoppedError(number)


def _hear(number: int, frame: Any) -> None:
    if _Heard.number:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    _Heard.number = number
    # several ranks end together, and wait for the next question
    if not _Heard.waits and world() == 1:
        raise StoppedError(number)
