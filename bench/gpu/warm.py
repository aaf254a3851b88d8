"""``python -m bench.gpu warm``: compile every Triton kernel for this GPU into Triton's disk cache, many at once.

No GPU is touched: a stand-in for Triton's driver says for which architecture to compile, and Triton's own road from a
launch to its cache is taken up to the launch. What runs afterwards finds its kernels there. Paths and Triton's library
enter the key of the cache, so that it is filled on the machine that reads it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from bench.gpu import candidates

if TYPE_CHECKING:
    from bench.gpu.kernels import Case

DTYPES = {"i1": torch.bool, "i32": torch.int32, "i64": torch.int64, "fp16": torch.float16, "bf16": torch.bfloat16,
          "fp32": torch.float32, "fp64": torch.float64}  # fmt: skip
# the kernels in whose name it is found, all but what hardly anybody meets, and the processes that share them
ONLY, PROCESSES = "^(?!.*AdamW.*unaligned)", os.cpu_count() or 1
# an argument of each kind, divisible by 16 as sizes mostly are
NUMBERS = {"i32": 4096, "i64": 2**40, "fp32": 0.5}


class Driver:
    """Triton's driver as far as compiling asks for it, for a GPU of an architecture as in 90."""

    def __init__(self, architecture: int) -> None:
        self._architecture = architecture

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self._architecture, 32)


def warm(case: Case) -> None:
    """Compile a kernel as its launch would, and the C++ that launches it where this version of Triton has one each."""
    from triton.backends.nvidia.driver import CudaLauncher
    from triton.runtime.jit import MockTensor

    given: dict[str, Any] = dict(case.constants)
    for name in case.kernel.arg_names:
        kind = case.signature.get(name, "i32")
        if name not in given:
            given[name] = MockTensor(DTYPES[kind[1:]]) if kind.startswith("*") else NUMBERS[kind]
    compiled = case.kernel.warmup(grid=(1,), **given, **case.options)
    # without libcuda there is nothing to link with, and nothing to launch
    if torch.cuda.is_available():
        CudaLauncher(compiled.src, compiled.metadata)


def failure(case: Case) -> str:
    """Return why a kernel does not compile, empty where it does."""
    try:
        warm(case)
    except Exception as error:
        return f"{case.name}: {type(error).__name__}: {error}".splitlines()[0][:300]
    return ""


def share(index: int, processes: int, architecture: int, only: str) -> tuple[int, list[str]]:
    """Compile each ``processes``-th kernel from ``index`` on. Return their count and what failed."""
    from triton.runtime import driver

    from bench.gpu.kernels import cases

    driver.set_active(Driver(architecture))
    chosen = [case for case in cases(True) if case.architecture == architecture and re.search(only, case.name)]
    mine = chosen[index::processes]
    return len(mine), [reason for case in mine if (reason := failure(case))]


def main(argv: Sequence[str]) -> int:
    """Fill the cache, and return 1 where a kernel does not compile."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu warm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=PROCESSES, help="(default: %(default)s)")
    parser.add_argument("--only", default=ONLY, help="kernels in whose name this regular expression is found")
    arguments = parser.parse_args(argv)
    # what is interpreted is not compiled
    os.environ.pop("TRITON_INTERPRET", None)
    architecture = int(re.sub(r"\D", "", candidates.here()))
    work = partial(share, processes=arguments.processes, architecture=architecture, only=arguments.only)
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.processes, mp_context=spawned) as pool:
        done = list(pool.map(work, range(arguments.processes)))
    failed = [line for _, lines in done for line in lines]
    print(*failed, f"{sum(count for count, _ in done)} kernels for sm_{architecture}, {len(failed)} failed", sep="\n")
    return 1 if failed else 0
