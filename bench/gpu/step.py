"""The step of a whole model: the plan beside the torch backend, eager and replayed."""

from collections.abc import Iterator

import torch

from bench.gpu.timing import timed
from gsr_kernels.backends.torch.rescale_gradient import rescale_gradient
from gsr_kernels.backends.triton.plan import Plan
from gsr_kernels.basis import SpectralBasis

# the weights of one layer of Falcon3-1B, (rows, columns), and its layers
LAYER = [(2048, 2048), (1024, 2048), (1024, 2048), (2048, 2048), (8192, 2048), (8192, 2048), (2048, 8192)]
LAYERS = 18
PAIRS = [(torch.bfloat16, torch.float16), (torch.bfloat16, torch.bfloat16), (torch.float32, torch.float16)]


def rows(quick: bool) -> Iterator[dict]:
    """One row a pair of dtypes, mode and variant."""
    shapes = LAYER * (2 if quick else LAYERS)
    for gradient, stored in PAIRS:
        bases = [_basis(shape, stored) for shape in shapes]
        gradients = [torch.randn(shape, device="cuda").to(gradient) for shape in shapes]
        for mode in ("drop", "keep"):
            yield from _rows(bases, gradients, gradient, stored, mode)


def _basis(shape: tuple[int, int], stored: torch.dtype) -> SpectralBasis:
    d1, d2 = shape
    k = min(shape)
    U = torch.linalg.qr(torch.randn(d1, k, device="cuda")).Q.to(stored).contiguous()
    Vh = torch.linalg.qr(torch.randn(d2, k, device="cuda")).Q.mT.to(stored).contiguous()
    return SpectralBasis(U, torch.rand(k, device="cuda").add(0.1).sort(descending=True).values, Vh)


def _rows(
    bases: list[SpectralBasis], gradients: list[torch.Tensor], gradient: torch.dtype, stored: torch.dtype, mode: str
) -> Iterator[dict]:
    plan = Plan(bases, [gradient] * len(bases), 0.5, [mode] * len(bases))
    outs = [torch.empty_like(G) for G in gradients]

    def by_torch() -> None:
        for G, basis, out in zip(gradients, bases, outs):
            rescale_gradient(G, basis.U, basis.S, basis.Vh, 0.5, mode, out)

    variants = {"torch": by_torch, "plan": lambda: plan.run(gradients, outs)}
    # a captured plan belongs to its gradients, which it overwrites: their values drift, the work is the same
    captured = Plan(bases, [gradient] * len(bases), 0.5, [mode] * len(bases))
    inside = [G.clone() for G in gradients]
    replay = captured.capture(inside)
    variants["plan, replayed"] = lambda: replay(inside)
    flop = sum(4 * G.numel() * basis.rank for G, basis in zip(gradients, bases))
    found = timed(variants, rounds=8)
    pair = f"{gradient} x {stored}".replace("torch.", "")
    for name, times in found.items():
        yield {
            "variant": f"{name} {mode}",
            "shape": f"{len(bases)} matrices",
            "dtype": pair,
            **times,
            "flop": flop,
            "tflops": round(flop / times["p50_ms"] / 1e9, 1),
            "ratio": round(found["torch"]["p50_ms"] / times["p50_ms"], 3),
            "ratio_to": "torch",
        }
