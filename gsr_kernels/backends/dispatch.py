"""Decide which backend computes an operator: torch, Triton's kernels, alone or around cuBLAS, or the CUDA extension."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec

import torch

from gsr_kernels.backends import choice, cuda
from gsr_kernels.checks import Backend, check_choice

CPU = torch.device("cpu")
fp16, bf16, fp32, fp64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
DTYPES = (fp16, bf16, fp32, fp64)

# from G to G', and with AdamW behind it: one launch a group of weights
STEPS = ("step", "update")
OPERATORS = (
    *STEPS, "project", "skew", "rescale", "recompose", "sketch", "small_svd", "stability", "sign_counts", "merge",
)  # fmt: skip

# (gradient, basis) that the kernels of a step multiply, in the dtype of the basis. fp16 carries 11 bits of an
# orthonormal basis at the rate of bf16, whose 8 bits turn signs of small g. Triton's float32 products run on no tensor
# core and spill
PAIRS = tuple((gradient, basis) for basis in (fp16, bf16) for gradient in (bf16, fp16, fp32))

# takes the place of "auto" for the steps on GPUs
VARIABLE = "GSR_KERNELS_BACKEND"

Shape = tuple[int, int, int]


def backend_for(
    op: str,
    device: torch.device | None = None,
    gradient: torch.dtype | None = None,
    basis: torch.dtype | None = None,
    shape: Shape | None = None,
    out_of_span: str | None = None,
    backend: str = "auto",
) -> tuple[str, str]:
    """Return the backend that computes an operator, and why. Every caller asks here.

    Args:
        op: one of ``OPERATORS``.
        device: of the operands; None for a CPU.
        gradient, basis: the dtypes of the gradient (or of the one operand) and of U and Vh, where they are known.
        shape: (d1, d2, k) of one matrix, where it is known.
        out_of_span: "drop" or "keep", of a step.
        backend: what the caller asks for. A step of a form that the asked for kernels do not support is torch's.

    Raises:
        ValueError: an unknown backend, one of Triton on a CPU outside its interpreter, "tma" or "cutlass" on a GPU
            other than Hopper, "cutlass" and "cuda" where the extension was built without it or does not support the
            device or k.
        TypeError: dtypes of a step that nobody computes on a GPU.
    """
    device = device or CPU
    if backend == "auto" and op in STEPS and has_kernels(device) and os.environ.get(VARIABLE):
        backend = os.environ[VARIABLE]
        check_choice(VARIABLE, backend, Backend)
    _check_asked(backend, device)
    if backend == "torch":
        return "torch", "asked for"
    if backend == "auto" and not has_kernels(device):
        return "torch", "not on a CUDA device"
    if op == "small_svd" and backend in ("auto", "cuda"):
        return _small_svd(device, shape, backend)
    if backend == "cuda":
        return "cuda", "asked for"
    if backend == "auto" and not kernels_installed():
        return "torch", "Triton is not installed"
    reason = unsupported(op, gradient, basis, shape, out_of_span)
    if reason and (backend == "auto" or op in STEPS):
        return "torch", reason
    if backend != "auto":
        return backend, "asked for"
    found = _measured(op, device, gradient, basis, shape, out_of_span)
    return (found.backend, found.reason) if found else ("triton", "on a CUDA device")


def has_kernels(device: torch.device) -> bool:
    """Return whether "auto" looks beyond torch on a device."""
    return device.type == "cuda"


def unsupported(
    op: str,
    gradient: torch.dtype | None,
    basis: torch.dtype | None,
    shape: Shape | None,
    out_of_span: str | None,
) -> str:
    """Return why Triton's kernels do not support a form of an operator, empty where they do; TypeError for no dtype."""
    if fp64 in (gradient, basis):
        return "Triton's kernels have no float64"
    if op == "sketch" and gradient not in (None, fp32):
        return f"Triton's sketch is of float32, not {gradient}"
    if op not in STEPS:
        return ""
    if gradient is not None and basis is not None and not {gradient, basis} <= set(DTYPES):
        raise TypeError(f"G in {gradient} and a basis in {basis}: both must be fp16, bf16, fp32 or fp64")
    if out_of_span == "drop" and shape is not None and shape[2] < min(shape[:2]):
        return "a truncated basis with out_of_span='drop' takes four products"
    if basis == fp32 and not interpreted():
        return "float32 products run on no tensor core: cuBLAS is faster"
    return ""


def lacking(way: str, device: torch.device) -> str:
    """Return why a device does not have one of ``choice.WAYS``, empty where it has. The interpreter has TMA."""
    if way == "tma" and architecture(device) not in (0, 90):
        return "needs a GPU of compute capability 9.0"
    reason = cuda.without_cutlass(device) if way == "cutlass" else ""
    return f"is unavailable: {reason}" if reason else ""


def interpreted() -> bool:
    """Return whether Triton runs kernels in its interpreter, on a CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def kernels_installed() -> bool:
    """Return whether Triton is installed."""
    return find_spec("triton") is not None


def _check_asked(backend: str, device: torch.device) -> None:
    check_choice("backend", backend, Backend)
    on_gpu = device.type == "cuda"
    if backend in choice.WAYS and backend != "torch" and not on_gpu and not interpreted():
        raise ValueError(f"backend={backend!r} needs tensors on a CUDA device, or TRITON_INTERPRET=1; got {device}")
    if reason := lacking(backend, device):
        raise ValueError(f"backend={backend!r} {reason}, got {device}: use backend='triton'")
    if backend == "cuda" and (not on_gpu or cuda.refusal(device)):
        reason = cuda.refusal(device) if on_gpu else f"it needs tensors on a CUDA device, got {device}"
        raise ValueError(f"backend='cuda' is unavailable: {reason}")


def _small_svd(device: torch.device, shape: Shape | None, backend: str) -> tuple[str, str]:
    """Decide for matrices of k x k. A refusal is a warning, too, where it decides about matrices that there are."""
    limit = cuda.small_svd_limit(device) if shape is not None or not cuda.refusal(device) else 0
    if not limit:
        return "torch", cuda.refusal(device)
    k = 0 if shape is None else shape[2]
    if k > limit and backend == "cuda":
        raise ValueError(f"backend='cuda' takes k up to {limit} on {device}, got {k}: backend='torch' takes any")
    if k > limit:
        return "torch", f"k = {k} is above {limit}"
    return "cuda", f"up to k = {limit}, torch beyond"


def _measured(
    op: str,
    device: torch.device,
    gradient: torch.dtype | None,
    basis: torch.dtype | None,
    shape: Shape | None,
    out_of_span: str | None,
) -> choice.Verdict | None:
    """Return what this machine found about a kind of step, see ``choice``."""
    if op not in STEPS or gradient is None or basis is None or shape is None:
        return None
    return choice.verdict(choice.machine(device), choice.Case(op, gradient, basis, shape, out_of_span or "drop"))


@cache
def architecture(device: torch.device) -> int:
    """Return 90 for Hopper, 0 for a CPU."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
