"""A session on a GPU: test and measure everything, part by part.

Parts run in the order of their importance, each in a process of its own, whatever became of those before it: an illegal
access ends every later launch of its process. What is measured is written row by row. A part that no longer fits into
the seconds is left out and named.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from bench.cases import SECONDS
from bench.docs.pages import ROOT
from bench.gpu import candidates
from bench.results import RESULTS

SANITIZER = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
# the project's own options ask for plugins that need not be installed beside a GPU
PYTEST = ["-m", "pytest", "-o", "addopts=--import-mode=importlib", "-p", "no:cacheprovider", "-q"]
TESTS = "python_tests/gpu"


@dataclass(frozen=True)
class Part:
    """The arguments of Python, the seconds that they are planned to take, and what the environment has beside ours.

    ``sanitizer`` is the tool of compute-sanitizer under which they run.
    """

    command: list[str]
    seconds: int
    environment: Mapping[str, str] = field(default_factory=dict)
    sanitizer: str = ""

    @property
    def words(self) -> list[str]:
        """Return the whole command."""
        tool = [SANITIZER, "--tool", self.sanitizer, "--error-exitcode", "9"] if self.sanitizer else []
        return [*tool, sys.executable, *self.command]


def case(name: str, *arguments: str, seconds: int | None = None) -> Part:
    """Return the part of a case of bench/cases."""
    return Part(["-m", "bench", "--case", name, *arguments], seconds or SECONDS[name])


def sanitized(tool: str, seconds: int, *arguments: str) -> Part:
    """Return the small problems under a tool of compute-sanitizer."""
    # memory as it was asked for: inside a block of torch's own cache an access out of bounds goes unseen
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return Part(["-m", "bench.gpu", "sanitize", *arguments], seconds, environment, tool)


BOTH = ["--gradient", "fp32", "bf16"]
PARTS = {
    "tests": Part([*PYTEST, TESTS], 80),
    "optimizer_step": case("optimizer_step", *BOTH, "--rank", "full", "256"),
    "transform": case("transform", *BOTH),
    "training_step": case("training_step", "--rank", "full", "256", seconds=55),
    "memory": case("memory"),
    "launch": case("launch"),
    "products": case("products"),
    "other ranks and bases": case("transform", "--rank", "256", "64", "--precision", "fp16", "bf16", seconds=25),
    "memcheck": sanitized("memcheck", 40),
}
# for other sessions, by name: decompositions and adapters, the CUDA extension, the candidates
DECOMPOSITIONS = {name: case(name) for name in ("svd_gpu", "svd_accuracy", "adapters_gpu")}
EXTENSION = {
    "build": Part(["setup.py", "build_ext", "--inplace"], 150, {"GSR_KERNELS_CUDA": "1"}),
    "small_svd_tests": Part([*PYTEST, f"{TESTS}/test_small_svd.py"], 120),
    "small_svd_gpu": case("small_svd_gpu", seconds=120),
    **{f"csrc_{tool}": sanitized(tool, 60, "--csrc") for tool in ("memcheck", "racecheck", "synccheck")},
}
CANDIDATES = {
    "build_candidates": Part(["-m", "bench.gpu", "candidates"], 240),
    "parity": Part([*PYTEST, f"{TESTS}/test_candidates.py"], 90),
    "comparison": Part(["-m", "bench", "--case", "rescale_gpu", "second_product_gpu", "products"], 170),
}
ALL = PARTS | DECOMPOSITIONS | EXTENSION | CANDIDATES


def run(parts: Mapping[str, Part], seconds: float, out: Path | None) -> bool:
    """Run the parts within the seconds, and return whether all were done.

    The rows of bench/results are copied to ``out`` after each.
    """
    if out:
        out.mkdir(parents=True, exist_ok=True)
    end, outcomes = time.perf_counter() + seconds, {}
    for name in (bar := tqdm(parts, "parts", disable=None)):
        bar.set_postfix_str(name)
        left = end - time.perf_counter()
        fits = left > parts[name].seconds
        outcomes[name] = _outcome(parts[name], left) if fits else f"left out, {left:.0f} s were left"
        print(f"{name}: {outcomes[name]}", flush=True)
        for file in RESULTS.glob("*.csv") if out else ():
            shutil.copy(file, out)
    print(*(f"{name:24} {outcome}" for name, outcome in outcomes.items()), sep="\n")
    return all(outcome.startswith("done") for outcome in outcomes.values())


def _outcome(part: Part, seconds: float) -> str:
    """Return how a part ended, within these seconds and about twice what it was planned to take."""
    begun, seconds = time.perf_counter(), min(seconds, 30 + 2 * part.seconds)
    if part.sanitizer and not Path(SANITIZER).exists():
        return "failed, compute-sanitizer is not installed"
    # as in 9.0a
    here = {"TORCH_CUDA_ARCH_LIST": re.sub(r"(\d\D?)$", r".\1", candidates.here())}
    try:
        code = ended(part.words, {**os.environ, **here, **part.environment}, seconds)
    except subprocess.TimeoutExpired:
        return f"cut off after {seconds:.0f} s"
    return f"{f'failed with {code}' if code else 'done'} in {time.perf_counter() - begun:.0f} s"


def ended(command: list[str], environment: Mapping[str, str], seconds: float) -> int:
    """Return the exit status of a command.

    After its time it is killed with all that it started, which would slow what follows.
    """
    with subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True) as process:
        try:
            return process.wait(seconds)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
