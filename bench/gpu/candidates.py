"""``python -m bench.gpu candidates``: build csrc/candidates for the GPU that shall judge them.

They make a library of their own, which no installation builds: build/candidates/NAME.so, its name made of the sources
and of what says how they are compiled. One that was built elsewhere, for any torch from 2.10 on, is taken as it is.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

from bench.gpu import nvcc

FOLDER = nvcc.ROOT / "build" / "candidates"
OPERATORS = nvcc.ROOT / "csrc" / "candidates" / "operators.cpp"
# beside the folder's own, and what says how they are compiled
OTHERS = [nvcc.ROOT / name for name in ("csrc/tensors.h", "csrc/rotation.cuh", "setup.py", "bench/gpu/nvcc.py")]


def path_of(architecture: str) -> Path:
    """Return the path of the library of the sources as they are, built or not."""
    own = sorted(path for path in OPERATORS.parent.iterdir() if path.suffix in (".cu", ".cuh", ".h", ".cpp"))
    parts = [architecture.encode(), *(path.read_bytes() for path in own + OTHERS)]
    return FOLDER / f"{hashlib.sha256(b' '.join(parts)).hexdigest()[:16]}.so"


def build(architecture: str) -> Path:
    """Build the library for an architecture as in "90a", unless it is there.

    Raises RuntimeError with the compiler's words where it does not compile, or as bench.gpu.nvcc would fail.
    """
    target, setup = path_of(architecture), nvcc.setup()
    if target.is_file():
        return target
    sources = [source for source in nvcc.sources() if source.parent == OPERATORS.parent]
    if reason := setup["obstacle"]():
        raise RuntimeError(f"the candidates cannot be built here: {reason}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder, ThreadPoolExecutor(4) as pool:
        objects = [Path(folder, f"{source.stem}.o") for source in (*sources, OPERATORS)]
        host = [*setup["command"](OPERATORS), "-c", str(OPERATORS), "-o", str(objects[-1])]
        done = pool.submit(_output, host)
        told = list(pool.map(nvcc.compiled, sources, [architecture] * len(sources), objects))
        failed = [wrong for _, wrong in told if wrong] + done.result()
        print(nvcc.line(nvcc.COLUMNS, dict(zip(nvcc.COLUMNS, nvcc.COLUMNS))))
        for source, (said, wrong) in zip(sources, told):
            failed += [] if wrong else nvcc.failures(source.name, said, architecture)
        # the name is that of a whole library alone
        whole = Path(folder, "library.so")
        failed = failed or _output(
            [*setup["linker_cuda"](), "-shared", *map(str, objects), "-o", str(whole), "-ltorch"]
        )
        if failed:
            raise RuntimeError("\n".join(failed))
        whole.replace(target)
    return target


def _output(command: list[str]) -> list[str]:
    """Run a command and return what it said if it failed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return [done.stderr] * bool(done.returncode)


def here() -> str:
    """Return the current GPU's architecture, or Hopper's where there is none."""
    if not torch.cuda.is_available():
        return "90a"
    major, minor = torch.cuda.get_device_capability()
    return f"{major}{minor}{'a' if major == 9 else ''}"


@cache
def obstacle() -> str:
    """Say why there are no candidates for the current GPU, empty where they are loaded."""
    if not OPERATORS.is_file():
        return "the candidates are in a checkout of the project alone: run this from one"
    path = path_of(here())
    if not path.is_file():
        return "the candidates were not built: python -m bench.gpu candidates"
    try:
        torch.ops.load_library(path)
    except OSError as reason:
        return f"{path} does not load, remove it: {reason}"
    return "" if hasattr(torch.ops.gsr_candidates, "rescale") else f"{path} lacks its operators"


def require() -> None:
    """Raise RuntimeError where there are none for the current GPU."""
    if reason := obstacle():
        raise RuntimeError(reason)


def main(argv: Sequence[str]) -> int:
    """Build the library."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu candidates", description=__doc__)
    parser.add_argument("--sm", default=here(), help="architecture (default: this GPU's, or 90a)")
    try:
        print(build(parser.parse_args(argv).sm))
    except RuntimeError as error:
        print(error)
        return 1
    return 0
