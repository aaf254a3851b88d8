"""Files that appear whole or not at all."""

import glob
import os
import platform
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

try:
    import fcntl
except ImportError:
    # not on Windows, where what killed processes left stays
    fcntl = None  # type: ignore[assignment]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; on success it is flushed to the disk and takes the name ``path``.

    Of a symbolic link the file that it points to is replaced. After an exception or a kill, what stood at ``path``
    before still stands there. What a killed process left beside it goes when the next one on the same machine writes:
    a writer holds a lock on what it writes, and only what can be locked goes.
    """
    path = Path(os.path.realpath(path))
    ours = f".{path.name}.{platform.node()}"
    for left in path.parent.glob(f"{glob.escape(ours)}.*.partial"):
        with suppress(OSError), left.open("rb") as opened:
            if locked(opened.fileno()):
                left.unlink()
    partial, lock = _new_partial(path.with_name(ours))
    try:
        yield partial
        # safetensors puts a file of its own there, for the owner's eyes alone
        partial.chmod(stat.S_IMODE((path.stat() if path.exists() else os.fstat(lock)).st_mode))
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    finally:
        os.close(lock)
        partial.unlink(missing_ok=True)


def _new_partial(prefix: Path) -> tuple[Path, int]:
    """Return a new empty file with the permissions of the user's umask, and the descriptor that holds its lock."""
    while True:
        partial = prefix.with_name(f"{prefix.name}.{uuid4().hex}.partial")
        lock = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        # another writer may have taken it for left before it was locked, and removes it then
        locked(lock, wait=True)
        if partial.exists():
            return partial, lock
        os.close(lock)


def locked(file: int, wait: bool = False) -> bool:
    """Take the lock of an open file; return False where that fails, or there are no locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
