"""Products by what is fastest on a CPU, at the full precision of float32, and with powers of two."""

import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gsr_kernels.io.decisions import Decisions

# oneDNN's own setting lowers its float32 products whatever torch is told
LOWERED = any(
    os.environ.get(name, "strict").lower() != "strict"
    for name in ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE")
)

# torch multiplies float32 by MKL, which leaves AVX-512 unused on CPUs of other makers than Intel; oneDNN's product took
# half the time on one of AMD
LINEAR: Any = None
if torch.backends.mkldnn.is_available() and not LOWERED:
    LINEAR = getattr(torch.ops.mkldnn, "_linear_pointwise", None)

# fixes the choice
VARIABLE = "GSR_KERNELS_CPU_PRODUCT"
CHOICES = ("mm", "onednn")
DECISIONS = Decisions("cpu_products.json")

# side of the matrices of the probe, its rounds, the share of mm's time below which oneDNN is chosen (ranks that probe
# for themselves are to find the same), and the relative error it may have: bf16's is 2e-3, TF32's 2e-4
SIDE, ROUNDS, WORTH, EXACT = 512, 7, 0.75, 1e-6

# rows of a panel, a part of a cache; of more threads than these torch makes better use than numpy's one
ROWS, NUMPYS_THREADS = 128, 2

# of its result that oneDNN, which takes no out, holds at a time
PART = 8

# columns up to which a product with a transposed matrix is a sum over panels of its rows
NARROW = 128

# the backends whose float32 products torch's settings may lower
BACKENDS = ("cuda", "mkldnn")

_lock = threading.Lock()
# the settings before the first of those who are inside entered, and how many are inside
_before: dict[str, str] = {}
_inside = 0


def product(A: Tensor, B: Tensor) -> Tensor:
    """Return ``A @ B``: of matrices in float32 on a CPU by what ``cpu_product`` chooses."""
    return _by_onednn(A, B) if _takes_onednn(A, B) else A @ B


def dots(A: Tensor, B: Tensor) -> Tensor:
    """Return the dot products ``[.., k]`` of each row of ``A [.., k, d]`` with that of B; A ⊙ B is never whole."""
    if on_host(A, B) and torch.get_num_threads() <= NUMPYS_THREADS:
        return torch.from_numpy(np.einsum("...i,...i->...", A.numpy(), B.numpy()))
    return torch.cat([(a * b).sum(-1) for a, b in zip(A.split(ROWS, -2), B.split(ROWS, -2))], -1)


def on_host(*tensors: Tensor) -> bool:
    """Tell whether tensors are plain ones on a CPU that numpy can compute with, outside of autograd and a compiler."""
    # subclasses (DTensor, FakeTensor) compute in their own way
    plain = all(type(X) is Tensor and X.device.type == "cpu" and not X.requires_grad for X in tensors)
    return plain and not torch.compiler.is_compiling()


def write_product(A: Tensor, B: Tensor, out: Tensor, base: Tensor | None = None) -> None:
    """Write ``out = A B``, or ``base + A B``, base may be out, rounded once to out's dtype."""
    if _takes_onednn(A, B):
        height = -(-len(A) // PART)
        for rows, old, new in zip(A.split(height), (out if base is None else base).split(height), out.split(height)):
            made = _by_onednn(rows, B)
            new.copy_(made if base is None else made.add_(old))
        return
    add = torch.addmm if A.ndim == 2 else torch.baddbmm
    if out.dtype != A.dtype:
        out.copy_(A @ B if base is None else add(base.to(A.dtype), A, B))
    elif base is None:
        torch.matmul(A, B, out=out)
    else:
        add(base, A, B, out=out)


def transposed_product(W: Tensor, Y: Tensor) -> Tensor:
    """Return ``Wᵀ Y``: of narrow Y and by MKL as a sum over panels of W's rows, which it reads too slowly whole."""
    plain = W.device.type == "cpu" and W.ndim == 2 and W.is_contiguous()
    if not plain or Y.shape[-1] > NARROW or _takes_onednn(W, Y):
        return product(W.mT, Y)
    total = Y.new_zeros(W.shape[-1], Y.shape[-1])
    for rows, part in zip(W.split(ROWS), Y.split(ROWS)):
        write_product(rows.mT, part, total, total)
    return total


@cache
def cpu_product() -> tuple[str, str]:
    """Return what multiplies float32 matrices on this CPU, "mm" (torch's own) or "onednn", and why.

    The faster one is found once by a probe of some milliseconds, and kept in the user's cache directory by the CPU's
    name and torch's version. Raises ValueError where ``GSR_KERNELS_CPU_PRODUCT`` asks for what there is not.
    """
    asked = os.environ.get(VARIABLE)
    if asked and asked not in CHOICES[: 1 if LINEAR is None else 2]:
        lacking = "oneDNN is not in this torch, or its own setting lowers it: " if asked in CHOICES else ""
        raise ValueError(f"{lacking}{VARIABLE} must be unset or one of {', '.join(CHOICES)}, got {asked!r}: unset it")
    if asked:
        return asked, f"{VARIABLE} says so"
    if LINEAR is None:
        return "mm", "oneDNN is not in this torch, or its own setting lowers it"
    machine = f"{_cpu()}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"
    known = DECISIONS.known(machine).get("float32")
    if known not in CHOICES:
        known = _probe()
        DECISIONS.keep(machine, {"float32": known})
    return known, f"found once on {machine}"


def _takes_onednn(A: Tensor, B: Tensor) -> bool:
    fit = all(X.dtype == torch.float32 and X.ndim == 2 and X.numel() for X in (A, B))
    # it has no derivative
    plain = fit and on_host(*(X if torch.is_grad_enabled() else X.detach() for X in (A, B)))
    return plain and cpu_product()[0] == "onednn"


def _by_onednn(A: Tensor, B: Tensor) -> Tensor:
    # the first operand is read in place row by row, the second either way; with gaps between their rows oneDNN's
    # reference takes thousands of times as long
    A, B = (X if X.is_contiguous() or X.mT.is_contiguous() else X.contiguous() for X in (A, B))
    if not A.is_contiguous() and B.mT.is_contiguous():
        return LINEAR(B.mT, A, None, "none", [], "").mT
    return LINEAR(A.contiguous(), B.mT, None, "none", [], "")


def _probe() -> str:
    """Return "onednn" where it is right and clearly faster, else "mm"."""
    A, B = torch.randn(2, SIDE, SIDE, dtype=torch.float32, device="cpu", generator=torch.Generator().manual_seed(0))
    ways: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mm": torch.mm, "onednn": _by_onednn}
    taken = dict.fromkeys(ways, float("inf"))
    with full_precision(A.device), torch.no_grad():
        truth = A.double() @ B.double()
        if not torch.dist(_by_onednn(A, B).double(), truth) <= EXACT * truth.norm():
            return "mm"
        for _ in range(ROUNDS):
            for name, multiply in ways.items():
                start = time.process_time()
                multiply(A, B)
                taken[name] = min(taken[name], time.process_time() - start)
    return "onednn" if taken["onednn"] < WORTH * taken["mm"] else "mm"


def _cpu() -> str:
    """Return the CPU's name, as far as the system tells."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def power_of_two(exponent: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``2^exponent`` in float32 or float64, exactly, for integers in [-126, 127].

    Made of its bits: torch's ldexp and exp2 go through a power in the default dtype, or one that is rounded.
    """
    if dtype == torch.float64:
        return ((exponent.long() + 1023) << 52).view(dtype)
    return ((exponent.int() + 127) << 23).view(dtype)


def times_power_of_two(X: Tensor, exponent: Tensor) -> Tensor:
    """Return ``X 2^exponent``, exact wherever it is a normal number, for any exponents of X's dtype."""
    # 2^149, by which the least float32 becomes 1, is no float32: several factors are
    limit = 126
    while exponent.abs().max() > limit:
        part = exponent.clamp(-limit, limit)
        X, exponent = X * power_of_two(part, X.dtype), exponent - part
    return X * power_of_two(exponent, X.dtype)


@contextmanager
def without_autocast() -> Iterator[None]:
    """Keep products in the dtype of their operands, whatever autocast is on around them; a decorator as well."""
    accelerator = torch.accelerator.current_accelerator()
    with ExitStack() as off:
        for device in ("cpu", *([accelerator.type] if accelerator else [])):
            if torch.is_autocast_enabled(device):
                off.enter_context(torch.autocast(device, enabled=False))
        yield


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Keep float32 products in float32 inside, against ``torch.set_float32_matmul_precision`` and autocast.

    In TF32 a polar factor carries a backward error near 1e-3, which no later step takes back. The setting is the whole
    process's: it comes back when the last thread leaves.
    """
    global _inside
    with _lock:
        _inside += 1
        if _inside == 1:
            _before.update({backend: _own(backend) for backend in BACKENDS if _precision(backend) != "ieee"})
            for backend in _before:
                _set_precision(backend, "matmul", "ieee")
    try:
        with torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext():
            yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                for backend, precision in _before.items():
                    _set_precision(backend, "matmul", precision)
                _before.clear()


def _own(backend: str) -> str:
    """Return the setting of a backend's products itself, "none" where it is inherited.

    torch tells only what is in force. An inherited value follows when the settings above are raised for a moment.
    """
    found = _precision(backend)
    above, root = _precision(backend, "all"), _precision("generic", "all")
    if found != above or found == "none":
        return found
    _set_precision("generic", "all", "ieee")
    above_own = above if _precision(backend, "all") == above else "none"
    _set_precision(backend, "all", "ieee")
    own = found if _precision(backend) == found else "none"
    _set_precision(backend, "all", above_own)
    _set_precision("generic", "all", root)
    return own


def _precision(backend: str, operation: str = "matmul") -> str:
    return torch._C._get_fp32_precision_getter(backend, operation)


def _set_precision(backend: str, operation: str, precision: str) -> None:
    torch._C._set_fp32_precision_setter(backend, operation, precision)
