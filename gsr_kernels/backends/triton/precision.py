"""Which gradient meets which basis how: the one table of what the kernels serve."""

from __future__ import annotations

from dataclasses import dataclass

import torch

fp16, bf16, fp32, fp64 = torch.float16, torch.bfloat16, torch.float32, torch.float64


@dataclass(frozen=True)
class Product:
    """How the products of one pair are computed.

    ``operand``: the dtype on the tensor cores; ``scaled``: G times a power of two, to lie in fp16's range;
    ``converted``: G is rounded in registers; ``by``: "triton" or "cublas"; ``mmas`` a product, in units of one 16-bit
    pass.
    """

    operand: torch.dtype
    by: str
    mmas: float
    scaled: bool = False
    converted: bool = False


# (gradient, basis as stored) -> product
PRODUCTS = {
    # fp16 carries 11 bits of an orthonormal basis at the rate of bf16, whose 8 turn signs of small g
    (bf16, fp16): Product(fp16, "triton", 1, scaled=True, converted=True),
    (fp16, fp16): Product(fp16, "triton", 1),
    (fp32, fp16): Product(fp16, "triton", 1, scaled=True, converted=True),
    (bf16, bf16): Product(bf16, "triton", 1),
    (fp16, bf16): Product(bf16, "triton", 1, converted=True),
    (fp32, bf16): Product(bf16, "triton", 1, converted=True),
    # Triton's float32 products run on no tensor core and spill
    (bf16, fp32): Product(fp32, "cublas", 12),
    (fp16, fp32): Product(fp32, "cublas", 12),
    (fp32, fp32): Product(fp32, "cublas", 12),
}


def product(gradient: torch.dtype, basis: torch.dtype) -> Product:
    """The row of the table; every pair with float64 in it goes to cuBLAS."""
    if fp64 in (gradient, basis):
        return Product(fp64, "cublas", 24)
    if (gradient, basis) not in PRODUCTS:
        raise TypeError(f"G in {gradient} and a basis in {basis}: both must be fp16, bf16, fp32 or fp64")
    return PRODUCTS[gradient, basis]
