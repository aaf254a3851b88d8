"""``python -m gsr_kernels info``: packages, GPUs, the CUDA extension, and the backend of every operator."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

import gsr_kernels
from gsr_kernels.backends import choice, cuda
from gsr_kernels.backends.dispatch import OPERATORS, STEPS, bf16, fp16, fp32, fp64
from gsr_kernels.backends.torch.products import cpu_product
from gsr_kernels.ops import backend_for

# the forms of a step, of which the answer is not one: dtypes of the basis, and what the basis does not span
FORMS: dict[str, dict[str, Any]] = {
    "basis in fp16": {"gradient": bf16, "basis": fp16},
    "basis in bf16": {"gradient": bf16, "basis": bf16},
    "basis in fp32": {"gradient": bf16, "basis": fp32},
    "basis in fp64": {"gradient": fp64, "basis": fp64},
    "truncated basis, drop": {"gradient": bf16, "basis": fp16, "shape": (3, 3, 2), "out_of_span": "drop"},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: there are no arguments."""


def run(args: argparse.Namespace) -> None:
    """Print the report."""
    print("\n".join(lines()))


def lines() -> Iterator[str]:
    """Return the report, also where there is neither a GPU nor an extension."""
    yield f"gsr-kernels {gsr_kernels.__version__}, python {platform.python_version()}"
    yield f"torch {torch.__version__}, for CUDA {torch.version.cuda or '– (none)'}; triton {_version('triton')}"
    devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    for device in devices:
        yield f"{device}: {_described(device)}"
    if not devices:
        yield "no CUDA device"
    yield f"CUDA C++: {_extension()}"
    yield "float32 products on the CPU by {}: {}".format(*cpu_product())
    yield ""
    for device in devices or [torch.device("cpu")]:
        for op in OPERATORS:
            yield from _decided(op, device)
        yield from _measured(device)


def _decided(op: str, device: torch.device) -> Iterator[str]:
    """Return a line for an operator, or for each of its forms where the answer depends on the form."""
    forms = FORMS if op in STEPS else {"": {}}
    answers = {name: backend_for(op, device, **form) for name, form in forms.items()}
    if len(set(answers.values())) == 1:
        answers = {"": next(iter(answers.values()))}
    for name, (backend, reason) in answers.items():
        yield f"{device!s:7} {op:11}  {backend:6}  {name + ': ' if name else ''}{reason}"


def _measured(device: torch.device) -> Iterator[str]:
    """Return a line for each kind of step that this machine checked and timed."""
    try:
        verdicts = choice.verdicts(choice.machine(device))
    # a GPU that does not answer
    except (RuntimeError, AssertionError):
        return
    for key, verdict in verdicts.items():
        yield f"{device!s:7} {key}: {verdict.backend}, {verdict.reason}"


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
