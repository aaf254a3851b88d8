"""Operators in CUDA C++ (csrc). It may be absent, broken or built for other GPUs: then torch computes."""

from __future__ import annotations

import warnings
from functools import cache
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

OPERATORS = Path(__file__).with_name("operators.so")
# the largest k that small_svd takes on any GPU
SMALL = 256
# nine to thirteen are usual, and no matrix of condition 1e5 was seen to take more than 23
SWEEPS = 40


@cache
def obstacle() -> str:
    """Return why there are no operators here, empty where they are loaded. No GPU is touched."""
    if not OPERATORS.is_file():
        return "the CUDA extension was not built (docs/csrc.md)"
    try:
        torch.ops.load_library(OPERATORS)
    except OSError as error:
        return f"the CUDA extension does not load: {error.__cause__ or error}"
    if not architectures():
        return "the CUDA extension lacks the module that says for which GPUs it was built: build it anew (docs/csrc.md)"
    return ""


def architectures() -> str:
    """Return what the extension was compiled for, as in ``80 90a 100+PTX``; empty where that cannot be said."""
    try:
        return str(import_module("gsr_kernels.backends.cuda.build").architectures)
    except ImportError:
        return ""


def runs_on(built: str, capability: tuple[int, int]) -> bool:
    """Return whether code for one of the architectures ``built`` runs on a GPU of this compute capability.

    Machine code runs on its generation from its own number on, with an a on that number alone. PTX runs on all later
    GPUs.
    """
    for name in built.split():
        number = name.removesuffix("+PTX")
        of = divmod(int(number.rstrip("af")), 10)
        if number.endswith("a"):
            fits = capability == of
        else:
            fits = capability[0] == of[0] and capability >= of
            fits |= name.endswith("+PTX") and capability >= of
        if fits:
            return True
    return False


@cache
def refusal(device: torch.device) -> str:
    """Return why the extension does not support this GPU, empty where it does."""
    if reason := obstacle():
        return reason
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    try:
        capability = torch.cuda.get_device_capability(device)
        if not runs_on(architectures(), capability):
            return f"the CUDA extension was built for sm_{architectures().replace(' ', ', sm_')}, not for {capability}"
        limit(device)
    except (RuntimeError, AssertionError) as error:
        return f"CUDA answers for {device}: {str(error).splitlines()[0]}"
    return ""


@cache
def without_cutlass(device: torch.device) -> str:
    """Return why the extension has no second product for this GPU, empty where it has."""
    if reason := refusal(device):
        return reason
    if torch.cuda.get_device_capability(device) != (9, 0):
        return "it is for GPUs of compute capability 9.0"
    if not hasattr(torch.ops.gsr_kernels_cuda, "second_product_adamw"):
        return "the CUDA extension was built without CUTLASS (docs/csrc.md)"
    return ""


def limit(device: torch.device) -> int:
    """Ask the loaded extension for this GPU's largest k; RuntimeError with CUDA's own words where it cannot say."""
    index = torch.cuda.current_device() if device.index is None else device.index
    return int(torch.ops.gsr_kernels_cuda.small_svd_limit(index))


@cache
def small_svd_limit(device: torch.device) -> int:
    """Return the largest k of ``small_svd`` on this GPU: 0 without support by the extension, which is said once."""
    if reason := refusal(device):
        warnings.warn(f"gsr_kernels: {reason}; torch.linalg decomposes small matrices instead", stacklevel=3)
        return 0
    return limit(device)


def small_svd(A: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return ``(U, S, Vh, sweeps)`` of all matrices ``A [.., k, k]`` in one launch: see ``ops.small_svd``."""
    *batch, k, _ = A.shape
    A = A.reshape(-1, k, k).contiguous()
    U, S, Vh = torch.empty_like(A), A.new_empty(len(A), k), torch.empty_like(A)
    sweeps = A.new_empty(len(A), dtype=torch.int32)
    torch.ops.gsr_kernels_cuda.small_svd(A, U, S, Vh, sweeps, SWEEPS)
    return U.view(*batch, k, k), S.view(*batch, k), Vh.view(*batch, k, k), sweeps.view(batch)


def second_product_adamw(
    left: Tensor, right: Tensor, lying: bool, kept: bool, scales: Tensor, coefficients: Tensor, finite: Tensor,
    G: Tensor, W: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor,
) -> None:  # fmt: skip
    """Step by AdamW with left right / scale, and G if it is ``kept``, of all matrices in one launch.

    left ``[n, d1, k]`` and right ``[n, k, d2]``, or ``[n, d2, k]`` if ``lying``, fp16; G, W and the moments
    ``[n, d1, d2]``, scales ``[n]`` and coefficients ``[n, 9]`` in float32; finite ``[n]`` bool.
    """
    operator = torch.ops.gsr_kernels_cuda.second_product_adamw
    operator(left, right, lying, G, kept, scales, coefficients, finite, W, exp_avg, exp_avg_sq)
