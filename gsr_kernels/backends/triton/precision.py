"""Which gradient meets which basis where: the one table of what the kernels serve."""

from __future__ import annotations

import torch

fp16, bf16, fp32, fp64 = torch.float16, torch.bfloat16, torch.float32, torch.float64

# (gradient, basis as stored) -> who computes the products, in the dtype of the basis
PRODUCTS = {
    # fp16 carries 11 bits of an orthonormal basis at the rate of bf16, whose 8 turn signs of small g
    (bf16, fp16): "triton",
    (fp16, fp16): "triton",
    (fp32, fp16): "triton",
    (bf16, bf16): "triton",
    (fp16, bf16): "triton",
    (fp32, bf16): "triton",
    # Triton's float32 products run on no tensor core and spill
    (bf16, fp32): "cublas",
    (fp16, fp32): "cublas",
    (fp32, fp32): "cublas",
}


def computed_by(gradient: torch.dtype, basis: torch.dtype) -> str:
    """The row of the table; every pair with float64 in it goes to cuBLAS. Raises TypeError for other dtypes."""
    if fp64 in (gradient, basis):
        return "cublas"
    if (gradient, basis) not in PRODUCTS:
        raise TypeError(f"G in {gradient} and a basis in {basis}: both must be fp16, bf16, fp32 or fp64")
    return PRODUCTS[gradient, basis]
