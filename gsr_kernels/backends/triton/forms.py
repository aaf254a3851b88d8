"""Forms of the matrices of a step, and the checks of what its kernels support."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from gsr_kernels.backends.dispatch import unsupported
from gsr_kernels.backends.triton import fields
from gsr_kernels.backends.triton.configurations import Configuration, configuration
from gsr_kernels.backends.triton.product import TYPES
from gsr_kernels.basis import SpectralBasis
from gsr_kernels.checks import check_out_of_span


@dataclass(frozen=True)
class Update:
    """Dtypes in which AdamW keeps a weight, its moments, and the narrow copy of the weight, if it has one."""

    weight: torch.dtype
    moment: torch.dtype
    copied: torch.dtype | None = None


# beside a gradient of a dtype: as torch keeps it; for 16 bits also with wide moments, and under a wide master
UPDATES = {
    torch.float32: (Update(torch.float32, torch.float32),),
    **{
        dtype: (
            Update(dtype, dtype),
            Update(dtype, torch.float32),
            Update(torch.float32, torch.float32, dtype),
        )
        for dtype in (torch.bfloat16, torch.float16)
    },
}


@dataclass(frozen=True)
class Form:
    """Properties that the matrices of one launch share."""

    gradient: torch.dtype
    operand: torch.dtype
    transposed: bool
    stored: bool
    even: bool
    update: Update | None = None

    @property
    def order(self) -> tuple[str, str, bool, bool, bool, str]:
        """Return a key for sorting: equal forms become neighbours, and gradients of one dtype."""
        return str(self.gradient), str(self.operand), self.transposed, self.stored, self.even, str(self.update)

    @property
    def constants(self) -> dict[str, Any]:
        """Return the constants of the kernels before g is rescaled."""
        return {"DTYPE": TYPES[self.operand], "TRANSPOSED": self.transposed}

    @property
    def constants_after(self) -> dict[str, Any]:
        """Return those of the second product: how g was found matters no more, unless the product is stored."""
        return {**self.constants, "TRANSPOSED": self.transposed and self.stored, "STORED": self.stored}

    @property
    def written(self) -> dict[str, Any]:
        """Return the constants of the second product's epilogue."""
        if self.update is None:
            return dict.fromkeys(("WEIGHT", "MOMENT", "COPIED"))
        copied = self.update.copied
        dtypes = {"WEIGHT": TYPES[self.update.weight], "MOMENT": TYPES[self.update.moment]}
        return {**dtypes, "COPIED": None if copied is None else TYPES[copied]}

    @property
    def scaled(self) -> bool:
        """Return whether G is multiplied by a power of two, to fit fp16."""
        return self.operand == torch.float16 and self.gradient != torch.float16

    @property
    def bounded(self) -> bool:
        """Return whether max |G| must be known, to fit fp16."""
        return self.scaled or (self.operand == torch.float16 and self.stored)

    def configuration(self, kernel: str, architecture: int, aligned: bool = True) -> Configuration:
        """Return the tiles of a kernel for this form; unaligned, it is compiled otherwise for the same tiles."""
        if not aligned:
            return configuration(kernel, architecture, "unaligned")
        converted = not self.stored if kernel == "second_product" else self.gradient != self.operand
        return configuration(kernel, architecture, "converted" if converted else "as stored")


@dataclass(frozen=True)
class Group:
    """Neighbouring matrices of one form that share launches and the workspace, and the tiles of each kernel."""

    form: Form
    matrices: tuple[int, int]
    tiles: Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Span:
    """Neighbouring matrices with gradients of one dtype that fp16 bounds, and the groups that they are in."""

    gradient: torch.dtype
    start: int
    count: int
    groups: tuple[int, ...]


def kind(basis: SpectralBasis) -> tuple[Hashable, ...]:
    """Return all of a basis but its elements and their addresses: a plan supports bases of one kind."""
    factors = (basis.U, basis.S, basis.Vh)
    return basis.head_dim, *((factor.shape, factor.stride(), factor.dtype, factor.device) for factor in factors)


def check(basis: SpectralBasis, gradient: torch.dtype, out_of_span: str, device: torch.device) -> None:
    """Raise TypeError or ValueError for what the kernels of the step do not support."""
    if basis.U.device != device or basis.S.device != device or basis.Vh.device != device:
        raise ValueError(f"the bases of a plan must be on one device: one is on {basis.U.device}, another on {device}")
    check_out_of_span(out_of_span)
    if basis.U.dtype != basis.Vh.dtype or basis.U.dtype not in TYPES or gradient not in TYPES:
        raise TypeError(f"a plan takes fp16, bf16 and fp32, got U {basis.U.dtype}, Vh {basis.Vh.dtype}, G {gradient}")
    if reason := unsupported("step", gradient, basis.U.dtype, basis.dims, out_of_span):
        raise ValueError(
            f"a plan takes no basis in {basis.U.dtype} of rank {basis.rank} of {tuple(basis.shape)} with a gradient in "
            f"{gradient} and out_of_span={out_of_span!r}: {reason}; use rescale_gradient, which takes it to cuBLAS"
        )
    if basis.S.dtype != torch.float32 or not all(part.is_contiguous() for part in (basis.U, basis.S, basis.Vh)):
        raise ValueError("a plan takes contiguous U, S, Vh with S in float32: call .contiguous() on them")


def form_of(basis: SpectralBasis, gradient: torch.dtype, out_of_span: str, update: Update | None) -> Form:
    """Return the form of a weight's matrices, which decides about their kernels."""
    *_, d1, d2 = basis.shape
    # the product with the fewer rows; for a dropped remainder it is the one that is stored, r x r
    transposed = d1 > d2
    stored = out_of_span == "drop" and d1 != d2
    return Form(gradient, basis.U.dtype, transposed, stored, not (d2 % 8 or basis.rank % 8), update)


def rows_of(basis: SpectralBasis) -> list[dict[int, int]]:
    """Return the sizes of a weight's matrices."""
    *_, d1, d2 = basis.shape
    sizes = {fields.D1.value: d1, fields.D2.value: d2, fields.K.value: basis.rank, fields.MATRICES.value: 0}
    rows = [dict(sizes) for _ in range(basis.S.numel() // basis.rank)]
    rows[0][fields.MATRICES.value] = len(rows)
    return rows
