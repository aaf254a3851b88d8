"""The products with a whole weight, in which a randomized decomposition spends its time."""

import torch
from torch import Tensor

# torch multiplies float32 by MKL, which leaves AVX-512 unused on CPUs of other makers; oneDNN's product took less than
# half the time there
LINEAR = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def product(A: Tensor, B: Tensor) -> Tensor:
    """``A @ B`` of a large ``A [.., m, n]``, as it lies or transposed, and a narrow ``B [.., n, k]`` of its dtype."""
    served = A.device.type == "cpu" and A.dtype == torch.float32 and A.ndim == B.ndim == 2
    # operands with gaps between their rows take oneDNN's reference, thousands of times as long
    if LINEAR is None or not served or not all(X.is_contiguous() or X.mT.is_contiguous() for X in (A, B)):
        return A @ B
    # a transposed operand is read as it lies only where it comes second
    if A.is_contiguous():
        return LINEAR(A, B.mT, None, "none", [], "")
    return LINEAR(B.mT, A, None, "none", [], "").mT
