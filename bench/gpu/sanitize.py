"""Small steps for compute-sanitizer: ``compute-sanitizer --tool memcheck python -m bench.gpu.sanitize``."""

import torch

from gsr_kernels.backends.triton.plan import Plan
from gsr_kernels.basis import SpectralBasis

SHAPES = [(256, 256), (128, 384), (384, 128), (130, 257), (17, 33)]


def main() -> None:
    """Every form of the step, aligned and not, once."""
    for gradient, stored in ((torch.bfloat16, torch.float16), (torch.float32, torch.bfloat16)):
        for mode in ("drop", "keep"):
            bases = [SpectralBasis.of(torch.randn(shape), precision=_name(stored)).to("cuda") for shape in SHAPES]
            plan = Plan(bases, [gradient] * len(bases), 0.5, [mode] * len(bases))
            plan.run([torch.randn(shape).to("cuda", gradient) for shape in SHAPES])
    torch.cuda.synchronize()
    print("done")


def _name(stored: torch.dtype) -> str:
    return "fp16" if stored == torch.float16 else "bf16"


if __name__ == "__main__":
    main()
