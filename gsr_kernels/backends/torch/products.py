"""Products at the full precision of float32, and with powers of two."""

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

# oneDNN's own setting lowers its float32 products whatever torch is told
LOWERED = any(
    os.environ.get(name, "strict").lower() != "strict"
    for name in ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE")
)

# torch multiplies float32 by MKL, which leaves AVX-512 unused on CPUs of other makers; oneDNN's product took less than
# half the time there
LINEAR = None
if torch.backends.mkldnn.is_available() and not LOWERED:
    LINEAR = getattr(torch.ops.mkldnn, "_linear_pointwise", None)

# the backends whose float32 products torch's settings may lower
BACKENDS = ("cuda", "mkldnn")

_lock = threading.Lock()
# the settings before the first of those who are inside entered, and how many are inside
_before: dict[str, str] = {}
_inside = 0


def product(A: Tensor, B: Tensor) -> Tensor:
    """Return ``A @ B`` of a large ``A [.., m, n]``, contiguous or transposed, and a narrow ``B [.., n, k]``."""
    supported = A.device.type == "cpu" and A.dtype == torch.float32 and A.ndim == B.ndim == 2
    # operands with gaps between their rows take oneDNN's reference, thousands of times as long
    if LINEAR is None or not supported or not all(X.is_contiguous() or X.mT.is_contiguous() for X in (A, B)):
        return A @ B
    # a transposed operand is read in place only where it comes second
    if A.is_contiguous():
        return LINEAR(A, B.mT, None, "none", [], "")
    return LINEAR(B.mT, A, None, "none", [], "").mT


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
        with torch.autocast(device.type, enabled=False):
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
