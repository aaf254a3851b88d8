"""Disk space that a run needs, and one error for a full disk."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gsr_kernels.continual.choose import Chosen
from gsr_kernels.continual.methods import AdapterMethod

# of a full disk, a quota or a limit on a file (ulimit -f); safetensors' texts of them, and what torch's writer says of
# any write that failed
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
TEXTS_OF_FULL = (
    *(f"(os error {number})" for number in FULL),
    "inline_container.cc",
    "PytorchStreamWriter failed",
    "iostream error",
)


def disk_needed(
    chosen: Chosen, weights: int, trained: int, moments: int, bases: int, beside: int, tasks: int, steps: int
) -> tuple[int, int]:
    """Return the bytes that a method of one seed leaves on disk, and those that it takes beside them while it learns.

    Models and checkpoints are counted; a row of answers, a log or a table is small beside them. ``trained`` are the
    bytes of the trained parameters, ``beside`` those that a method keeps with a model, ``steps`` those of its longest
    stage.
    """
    method, settings = chosen.method, chosen.settings_of_run
    # after each task: the model, or the adapters up to it, which checkpoints hold beside the model
    models, adapters = [weights + beside] * tasks, 0
    if isinstance(method, AdapterMethod):
        adapters = trained
        if not method.balanced:
            models = [trained * (number if method.own else 1) for number in range(1, tasks + 1)]
            adapters = models[-1]
    checkpoint = weights + adapters + moments
    # a new one is written before the last one goes
    checkpoints = checkpoint * (1 + (steps > settings.save_every))
    if not chosen.chained and not settings.fsdp and not settings.keep_models:
        return 0, checkpoints
    kept = sum(models) if settings.keep_models or not chosen.chained else models[-1]
    # the model before goes when the one after it is written
    before = models[-2] if chosen.chained and tasks > 1 and not settings.keep_models else 0
    return kept, bases + max(checkpoints, checkpoint + before)


def free_disk(folder: Path) -> int:
    """Return the bytes that are free where a folder is, or is to be."""
    return shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.is_dir())).free


@contextmanager
def explain_full_disk(folder: Path) -> Iterator[None]:
    """Raise OSError, in one sentence, for a full disk, which each library has its own error for."""
    try:
        yield
    except Exception as error:
        if not _is_full(error):
            raise
        free = free_disk(folder) / 2**20
        raise OSError(
            f"--out {folder}: the disk is full ({free:.0f} MiB are free, too few for what was to be written), or a "
            "quota or ulimit -f is reached: free some and go on by --resume; nothing is lost"
        ) from error


def _is_full(error: BaseException | None) -> bool:
    while error is not None:
        full = isinstance(error, OSError) and error.errno in FULL
        if full or any(text in str(error) for text in TEXTS_OF_FULL):
            return True
        error = error.__cause__ or error.__context__
    return False
