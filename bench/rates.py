"""What the device reaches: floors stand on it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from gsr_kernels.cli.floors import Rates

from .timing import on_device

# one H200: products of random 16-bit numbers and a copy as measured there, TF32 as half of the first, plain float32 by
# its datasheet
H200 = Rates({"16-bit": 790.0, "tf32": 395.0, "fp32": 67.0}, bandwidth=4.3)


def measured(device: torch.device) -> Rates:
    """The same by the best of some products and copies; a CPU multiplies in float32 whatever it is given."""
    if device.type == "cuda":
        half, single = (_product(8192, dtype, device) for dtype in (torch.bfloat16, torch.float32))
        return Rates({"16-bit": half, "tf32": half / 2, "fp32": single}, _copy(2**30, device))
    # a CPU is at its best where the operands fit its cache
    best = max(_product(n, torch.float32, device) for n in (512, 1024))
    return Rates({"16-bit": best, "tf32": best, "fp32": best}, _copy(2**25, device))


def _product(n: int, dtype: torch.dtype, device: torch.device) -> float:
    """TFLOP/s."""
    left, right = torch.randn(2, n, n, device=device).to(dtype)
    out = torch.empty_like(left)
    return 2 * n**3 / _best(lambda: torch.mm(left, right, out=out), device) * 1e-9


def _copy(entries: int, device: torch.device) -> float:
    """TB/s."""
    source = torch.randn(entries, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best(lambda: target.copy_(source), device) * 1e-9


def _best(run: Callable[[], object], device: torch.device) -> float:
    return min(on_device({"": run}, device, seconds=0.2, least=5)[""])


def rows_of(rates: Rates) -> list[dict]:
    """What was measured, TFLOP/s and TB/s, as rows; TF32 was not, and a CPU knows no 16-bit products."""
    rated = {unit: rate for unit, rate in rates.products.items() if unit != "tf32"}
    if len(set(rates.products.values())) == 1:
        del rated["16-bit"]
    return [
        {"variant": name, "rate": float(f"{rate:.4g}")} for name, rate in (rated | {"memory": rates.bandwidth}).items()
    ]
