"""Products at the full precision of float32."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_precision() -> Iterator[None]:
    """Float32 products stay float32 inside, whatever ``torch.set_float32_matmul_precision`` has allowed.

    In TF32 a polar factor carries a backward error near 1e-3, which no later step takes back.
    """
    settings = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = "ieee"
        yield
    finally:
        for setting, precision in zip(settings, before):
            setting.fp32_precision = precision
