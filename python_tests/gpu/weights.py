"""Bases and gradients on the GPU, without a decomposition: any orthonormal factors will do."""

import torch

from gsr_kernels import SpectralBasis

FP16, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32
# (gradient, basis as stored): every pair that the kernels compute
PAIRS = [(BF16, FP16), (FP32, FP16), (FP16, FP16), (BF16, BF16), (FP32, BF16), (FP16, BF16)]
SHAPES = [(2048, 2048), (1024, 2048), (8192, 2048), (2048, 8192), (4096, 14336)]
# one direction is one number, right or wrong by luck: 1 x 64 many times
RAGGED = [(17, 33), (96, 40), (256, 1, 64), (130, 257), (1999, 777), (3, 136, 72)]
TRUNCATED = [(2048, 2048), (8192, 2048)]
# steps of a training, and of one plan
STEPS, REPEATS = 50, 1000


def draw(shape, gradient, stored, rank=None, scale=1.0):
    """A basis in ``stored`` and a gradient of it."""
    *batch, d1, d2 = shape
    k = rank or min(d1, d2)
    U = torch.linalg.qr(torch.randn(*batch, d1, k)).Q
    Vh = torch.linalg.qr(torch.randn(*batch, d2, k)).Q.mT
    S = torch.rand(*batch, k).add(0.01).sort(descending=True).values
    basis = SpectralBasis(U.to(stored).contiguous(), S.contiguous(), Vh.to(stored).contiguous())
    return basis, (torch.randn(shape) * scale).to(gradient)
