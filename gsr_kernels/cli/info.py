"""``python -m gsr_kernels info``: what is installed here, what was built, and who computes what."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

import torch

import gsr_kernels
from gsr_kernels.backends import cuda
from gsr_kernels.ops import OPERATORS, chosen


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There are none."""


def run(args: argparse.Namespace) -> None:
    """Prints the report."""
    print("\n".join(lines()))


def lines() -> Iterator[str]:
    """The report, also where there is neither a GPU nor an extension."""
    yield f"gsr-kernels {gsr_kernels.__version__}, python {platform.python_version()}"
    yield f"torch {torch.__version__}, for CUDA {torch.version.cuda or '– (none)'}; triton {_version('triton')}"
    devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    for device in devices:
        yield f"{device}: {_described(device)}"
    if not devices:
        yield "no CUDA device"
    yield f"CUDA C++: {_extension()}"
    yield ""
    for device in devices or [torch.device("cpu")]:
        for name in OPERATORS:
            backend, reason = chosen(name, device)
            yield f"{device!s:7} {name:17}  {backend:6}  {reason}"


def _described(device: torch.device) -> str:
    try:
        major, minor = torch.cuda.get_device_capability(device)
        return f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}"
    except (RuntimeError, AssertionError) as error:
        return f"does not answer: {error}"


def _extension() -> str:
    if reason := cuda.obstacle():
        return reason
    build = import_module("gsr_kernels.backends.cuda.build")
    return f"built for sm_{build.architectures.replace(' ', ', sm_')} by nvcc {build.nvcc} beside torch {build.torch}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "is not installed"
