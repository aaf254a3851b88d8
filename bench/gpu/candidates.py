"""``python -m bench.gpu candidates``: build csrc/candidates for the GPU that shall judge them.

They make a library of their own, which no installation builds: build/candidates/NAME.so, its name made of the sources
and of what says how they are compiled. One that was built elsewhere, for any torch from 2.10 on, is taken as it is.
Without CUTLASS it is built without the products.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

from bench.gpu import nvcc

FOLDER = nvcc.ROOT / "build" / "candidates"
OPERATORS = nvcc.ROOT / "csrc" / "candidates" / "operators.cpp"
PRODUCTS = OPERATORS.with_name("products.cu")
# beside the folder's own, and what says how they are compiled
OTHERS = [nvcc.ROOT / name for name in ("csrc/tensors.h", "csrc/rotation.cuh", "setup.py", "bench/gpu/nvcc.py")]


def sources(products: bool) -> list[Path]:
    """Return the kernels of the library, with or without the products."""
    found = [source for source in nvcc.sources() if source.parent == OPERATORS.parent]
    return [source for source in found if products or source.stem != "products"]


def path_of(products: bool, architecture: str) -> Path:
    """Return the path of the library of the sources as they are, built or not."""
    own = sorted(path for path in OPERATORS.parent.iterdir() if path.suffix in (".cu", ".cuh", ".h", ".cpp"))
    parts = [f"{architecture} {products}".encode(), *(path.read_bytes() for path in own + OTHERS)]
    return FOLDER / f"{hashlib.sha256(b' '.join(parts)).hexdigest()[:16]}.so"


def library(architecture: str) -> Path | None:
    """Return the library for a GPU if there is one, the fuller one first."""
    return next(
        (path for path in (path_of(products, architecture) for products in (True, False)) if path.is_file()), None
    )


def build(architecture: str) -> Path:
    """Build the library for an architecture as in "90a", unless it is there as full as it can be had.

    Raises RuntimeError with the compiler's words where it does not compile, or as bench.gpu.nvcc would fail.
    """
    products, reason = not nvcc.obstacle(PRODUCTS, architecture), nvcc.setup()["obstacle"]()
    target, found = path_of(products, architecture), library(architecture)
    if found and (reason or found in (target, path_of(True, architecture))):
        return found
    if reason:
        raise RuntimeError(f"the candidates cannot be built here: {reason}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    chosen = sources(products)
    objects = [target.with_name(f"{target.stem}-{source.stem}.o") for source in (*chosen, OPERATORS)]
    command = [*nvcc.setup()["command"](OPERATORS), *(["-DPRODUCTS"] if products else []), "-c", str(OPERATORS), "-o"]
    with ThreadPoolExecutor(4) as pool:
        host = pool.submit(subprocess.run, [*command, str(objects[-1])], capture_output=True, text=True, check=False)
        told = list(pool.map(nvcc.compiled, chosen, [architecture] * len(chosen), objects))
    failed = [wrong for _, wrong in told if wrong] + [host.result().stderr] * bool(host.result().returncode)
    print(nvcc.line(nvcc.COLUMNS, dict(zip(nvcc.COLUMNS, nvcc.COLUMNS))))
    for source, (said, wrong) in zip(chosen, told):
        failed += [] if wrong else nvcc.failures(source.name, said, architecture)
    if not failed:
        # the name is that of a whole library alone
        partial = target.with_suffix(".partial")
        link = [*nvcc.setup()["linker_cuda"](), "-shared", *map(str, objects), "-o", str(partial), "-ltorch"]
        done = subprocess.run(link, capture_output=True, text=True, check=False)
        failed = [done.stderr] * bool(done.returncode)
        if failed:
            partial.unlink(missing_ok=True)
        else:
            partial.replace(target)
    for one in objects:
        one.unlink(missing_ok=True)
    if failed:
        raise RuntimeError("\n".join(failed))
    return target


def lacking(architecture: str) -> str:
    """Say why there is nothing to judge in full; empty where the library is there with all that the GPU can run."""
    if not OPERATORS.is_file():
        return "the candidates are in a checkout of the project alone: run this from one"
    path = library(architecture)
    if path is None:
        return "the candidates were not built: python -m bench.gpu candidates"
    if architecture == "90a" and path != path_of(True, architecture):
        return (
            f"{path} has no products: they need CUTLASS {nvcc.CUTLASS} (pip install nvidia-cutlass, or CUTLASS_DIR), "
            "or build/candidates from where python -m bench.gpu candidates found it"
        )
    return ""


def here() -> str:
    """Return the current GPU's architecture, or Hopper's where there is none."""
    if not torch.cuda.is_available():
        return "90a"
    major, minor = torch.cuda.get_device_capability()
    return f"{major}{minor}{'a' if major == 9 else ''}"


@cache
def obstacle() -> str:
    """Say why there are no candidates for the current GPU, empty where they are loaded."""
    path = library(here()) if OPERATORS.is_file() else None
    if path is None:
        return lacking(here())
    try:
        torch.ops.load_library(path)
    except OSError as reason:
        return f"{path} does not load, remove it: {reason}"
    return "" if has("rescale") else f"{path} lacks its operators"


def has(operator: str) -> bool:
    """Tell whether the loaded library has an operator: without CUTLASS it has no products."""
    return hasattr(torch.ops.gsr_candidates, operator)


def main(argv: Sequence[str]) -> int:
    """Build the library."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu candidates", description=__doc__)
    parser.add_argument("--sm", default=here(), help="architecture (default: this GPU's, or 90a)")
    arguments = parser.parse_args(argv)
    try:
        path = build(arguments.sm)
    except RuntimeError as error:
        print(error)
        return 1
    if path != path_of(True, arguments.sm):
        print(f"without the products: {nvcc.obstacle(PRODUCTS, arguments.sm)}")
    print(path)
    return 0
