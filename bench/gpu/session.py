"""A session on a GPU: the parts of ``bench.gpu.plan``, each in a process of its own.

An illegal access ends every later launch of its process, and a part may hang: so a part that fails, or runs out of its
time and is killed with all that it started, costs the others nothing. Rows are written where they stay as they are
measured, and so is what the parts print: whatever ends the session, what came before is there.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from bench.docs.pages import ROOT
from bench.gpu import candidates
from bench.gpu.plan import SANITIZER, Part
from bench.results import FOLDER, RESULTS

LOG, OUTCOMES = "log.txt", "outcomes.txt"
# bytes of the log
MOST = 15 * 2**20
# what a rehearsal runs of the tests, in one process
REHEARSAL = {
    "PYTEST_ADDOPTS": "-p bench.gpu.stand_in -k 'single_direction and float32'",
    "PYTEST_XDIST_AUTO_NUM_WORKERS": "0",
}


def run(parts: Mapping[str, Part], seconds: float, out: Path, rehearsal: bool = False) -> bool:
    """Run the parts within the seconds, and return whether all were done.

    ``out`` takes results.csv and gpu_tests.csv, begun with those of bench/results, log.txt, outcomes.txt and, in the
    folder gsr_kernels, what was decided about this GPU. A part may take, beside its own seconds, half of those that no
    later one is planned to need.
    """
    out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(out / "gsr_kernels", ignore_errors=True)
    for file in () if rehearsal else RESULTS.glob("*.csv"):
        shutil.copy(file, out)
    end = time.perf_counter() + seconds
    waiting = sum(part.seconds for part in parts.values())
    outcomes: dict[str, str] = {}
    with (out / LOG).open("w", encoding="utf-8") as log:
        for name, part in parts.items():
            left = end - time.perf_counter()
            limit = min(left, part.seconds + max(0.0, left - waiting) / 2)
            waiting -= part.seconds
            _tell([f"\n{name}: {part.worth}; {limit:.0f} s at most\n"], log)
            outcomes[name] = _outcome(part, limit, out, log, rehearsal) if left > 1 else "left out, no time was left"
            _tell([f"{name}: {outcomes[name]}\n"], log)
            (out / OUTCOMES).write_text("".join(f"{name:20}{outcome}\n" for name, outcome in outcomes.items()))
    print((out / OUTCOMES).read_text())
    return all(outcome.startswith("done") for outcome in outcomes.values())


def _outcome(part: Part, seconds: float, out: Path, log: TextIO, rehearsal: bool) -> str:
    """Return how a part ended."""
    if part.sanitizer and not rehearsal and not Path(SANITIZER).exists():
        return "failed, compute-sanitizer is not installed"
    tool = [SANITIZER, "--tool", part.sanitizer, "--error-exitcode", "9"] if part.sanitizer else []
    command = [sys.executable, "-m", "bench.gpu", "stand-in"] if rehearsal else [*tool, sys.executable]
    # as in 9.0a
    here = {"TORCH_CUDA_ARCH_LIST": re.sub(r"(\d\D?)$", r".\1", candidates.here()), FOLDER: str(out.resolve())}
    # what a part decides holds for the later ones, and comes back
    here |= {
        "XDG_CACHE_HOME": str(out.resolve()),
        "PYTHONUNBUFFERED": "1",
        **part.environment,
        **(REHEARSAL if rehearsal else {}),
    }
    begun = time.perf_counter()
    try:
        code = ended([*command, *part.command], {**os.environ, **here}, seconds, log)
    except subprocess.TimeoutExpired:
        return f"cut off after {seconds:.0f} s"
    return f"{f'failed with {code}' if code else 'done'} in {time.perf_counter() - begun:.0f} s"


def ended(command: list[str], environment: Mapping[str, str], seconds: float, log: TextIO) -> int:
    """Return the exit status of a command whose words go to the log.

    After its time, and when this process is stopped, it is killed with all that it started, which would slow what
    follows.
    """
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, start_new_session=True, text=True, encoding="utf-8", errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        telling = threading.Thread(target=_tell, args=(process.stdout, log), daemon=True)
        telling.start()
        try:
            return process.wait(seconds)
        finally:
            # also what outlived it: whoever holds its output keeps us reading
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            telling.join(5)


def _tell(lines: Iterable[str], log: TextIO) -> None:
    """Print lines, and write them to the log while it is short enough to come back."""
    for line in lines:
        print(line, end="", flush=True)
        if log.tell() + 4 * len(line) < MOST:
            log.write(line)
            log.flush()
