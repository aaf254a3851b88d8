"""pass@1: does a program that a model wrote pass its tests?"""

from __future__ import annotations

import contextlib
import os
import platform
import random
import signal
import subprocess
import sys
from pathlib import Path

from gsr_kernels.continual.examples import Example

# of processor time, and of address space
SECONDS = 5
MEGABYTES = 1024
# for starting, and for waiting in vain
PATIENCE = 5
CONFINE = Path(__file__).with_name("confine.py")


def passes(row: Example, answer: str) -> float:
    """1 where ``prefix``, the answer and ``test``, run as one program, end without an error; else 0."""
    return float(run_program(f"{row.prefix}{answer}\n{row.test}"))


def run_program(text: str, seconds: int = SECONDS, megabytes: int = MEGABYTES) -> bool:
    """Return whether a confined program came to its end within ``seconds + PATIENCE``; nothing of it is left."""
    # what the program could exit with by itself is left out
    success = random.SystemRandom().randrange(64, 250)
    child = subprocess.Popen(
        [sys.executable, "-I", str(CONFINE), str(seconds), str(megabytes)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # libraries that would start threads
        env={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PATH": os.defpath},
        cwd="/",
        start_new_session=True,
    )
    try:
        program = text.encode("utf-8", "replace")
        child.communicate(b"%d\n%s%d" % (len(program), program, success), timeout=seconds + PATIENCE)
    except subprocess.TimeoutExpired:
        return False
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    return child.returncode == success


def check_programs() -> None:
    """Raises ValueError where programs cannot be confined on this machine."""
    if platform.machine() != "x86_64" or sys.platform != "linux" or not run_program("pass"):
        raise ValueError(
            "--metric pass@1 runs what the model wrote, confined by Linux's seccomp on x86_64, which this machine does "
            "not offer: choose another metric"
        )
