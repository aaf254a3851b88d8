"""Sources of csrc compiled for the CPU beside an emulation of what CUDA gives them (emulation/)."""

import ctypes
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"


def compiled(name: str, folder: Path) -> ctypes.CDLL:
    """The library of emulation/NAME.cpp; the test is skipped where there is no compiler."""
    if shutil.which("g++") is None:
        pytest.skip("g++ was not found")
    target = folder / f"{name}.so"
    include = ["-include", "cuda_runtime.h", f"-I{HERE / 'emulation'}", f"-I{CSRC}"]
    # the kernels ask for fused multiplications by name
    machine = ["-mfma"] if platform.machine() == "x86_64" else []
    # two of these libraries in one process share no variables
    machine += ["-fno-gnu-unique"]
    command = ["g++", "-std=c++20", "-O2", *machine, "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Werror", "-fPIC",
               "-shared", "-pthread", *include, HERE / "emulation" / f"{name}.cpp", "-o", target]  # fmt: skip
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(target))
