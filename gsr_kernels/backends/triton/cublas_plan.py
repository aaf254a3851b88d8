"""The step of a whole model with the products of cuBLAS, and kernels for all that is around them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from gsr_kernels.backends.triton import cublas_kernels as kernels
from gsr_kernels.backends.triton import fields
from gsr_kernels.backends.triton.configurations import BLOCK, options
from gsr_kernels.backends.triton.forms import Form, Group
from gsr_kernels.backends.triton.launches import Launch
from gsr_kernels.backends.triton.plan import Offsets, Plan, Sizes, padded
from gsr_kernels.backends.triton.product import TYPES
from gsr_kernels.basis import SpectralBasis

FOLDED, OPERAND, PRODUCT = fields.FOLDED.value, fields.OPERAND.value, fields.PRODUCT.value
RESULT = fields.RESULT.value


@dataclass(frozen=True, eq=False)
class Part:
    """The matrices of one weight in a group: which of the weight's, which of the plan's, and their buffers."""

    weight: int
    own: slice
    matrices: slice
    operand: Tensor
    product: Tensor
    folded: Tensor
    result: Tensor


class CublasPlan(Plan):
    """A ``Plan`` whose two products are cuBLAS's, of operands in the dtype of the basis with sums in float32.

    Beside the buffers of a ``Plan`` a group holds its gradients in the dtype of the basis, and the second product in
    float32; the two share memory.
    """

    # U [n, d1, k] and Vh [n, k, d2] of each weight, while a step runs
    _factors: Sequence[tuple[Tensor, Tensor]] = ()

    def _step(self, bases: Sequence[SpectralBasis]) -> None:
        self._factors = [(_matrices(basis.U), _matrices(basis.Vh)) for basis in bases]
        super()._step(bases)
        self._factors = ()

    def _buffers(self, forms: Sequence[Form], height: Sizes, d1: Sizes, d2: Sizes, k: Sizes) -> tuple[Offsets, Sizes]:
        width = np.array([form.operand.itemsize for form in forms])
        left = np.where([form.stored for form in forms], height, d1)
        folded, operand, product = padded(left * k * width), padded(d1 * d2 * width), padded(4 * height * k)
        # when the second product is written, the first one and its operand are free
        offsets = {FOLDED: 0 * folded, OPERAND: folded, PRODUCT: folded + operand, RESULT: folded}
        return offsets, folded + np.maximum(operand + product, padded(4 * d1 * d2))

    def _bind(self, group: Group, aligned: bool) -> list[Launch]:
        form, table, matrices, align = group.form, self._addresses.table, group.matrices, 8 if aligned else 1
        inner, outer = group.tiles["first_product"], group.tiles["second_product"]
        rows = partial(self._grid, group.matrices[1] * kernels.SLICES.value)
        first, second = (form.configuration(f"{name}_product", self._architecture) for name in ("first", "second"))
        convert = partial(
            kernels.convert[rows(8)], table, *matrices, self._extremes,
            G_DTYPE=TYPES[form.gradient], DTYPE=TYPES[form.operand], ALIGN=align, BLOCK=BLOCK, **options(),
        )  # fmt: skip
        reduce = partial(
            kernels.reduce_product[self._grid(inner[1], 4)],
            table, self._tiles, *inner, self._partials, self._extremes, int(form.scaled), int(form.stored),
            **form.constants, ALIGN=align, BM=first.BM, BN=first.BN, **options(num_warps=8),
        )  # fmt: skip
        scale = partial(
            kernels.scale_factor[rows(8)], table, *matrices, self._delta,
            DTYPE=TYPES[form.operand], ALIGN=align, BLOCK=BLOCK, **options(),
        )  # fmt: skip
        write = partial(
            kernels.write_result[self._grid(outer[1], 4)],
            table, self._tiles, *outer, self._scales, self._finite, self._coefficients, int(form.stored),
            G_DTYPE=TYPES[form.gradient], ALIGN=align, **form.written,
            BM=second.BM, BN=second.BN, **options(num_warps=8),
        )  # fmt: skip
        left = self._bind_fold(group, aligned) if form.stored else scale
        parts = list(self._parts(group))
        products = [partial(self._first, part, form.transposed) for part in parts]
        return [
            convert,
            *products,
            reduce,
            self._bind_rescale(group),
            left,
            *self._bind_last(group, aligned, parts, write),
        ]

    def _bind_last(self, group: Group, aligned: bool, parts: Sequence[Part], write: Launch) -> list[Launch]:
        """Return the second products, and what writes their results."""
        lying = group.form.transposed and group.form.stored
        return [*(partial(self._second, part, lying) for part in parts), write]

    def _parts(self, group: Group) -> Iterator[Part]:
        """Yield a part for each weight that has matrices in the group."""
        start, count = group.matrices
        form = group.form
        for weight, rows in enumerate(self._addresses.rows):
            a, b = max(rows.start, start), min(rows.stop, start + count)
            if a >= b:
                continue
            d1, d2, k = (self._matrices[a][field.value] for field in (fields.D1, fields.D2, fields.K))
            height = d2 if form.transposed else d1
            operand = self._view(OPERAND, a, b, d1, d2, form.operand)
            product = self._view(PRODUCT, a, b, height, k, torch.float32)
            folded = self._view(FOLDED, a, b, height if form.stored else d1, k, form.operand)
            result = self._view(RESULT, a, b, d1, d2, torch.float32)
            yield Part(weight, slice(a - rows.start, b - rows.start), slice(a, b), operand, product, folded, result)

    def _view(self, field: int, a: int, b: int, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """Return a buffer of the matrices [a, b), of one shape, as [b - a, rows, columns]."""
        size = dtype.itemsize
        offset = self._matrices[a][field] - self._workspace.data_ptr()
        apart = self._matrices[a + 1][field] - self._matrices[a][field] if b - a > 1 else rows * columns * size
        strides = (apart // size, columns, 1)
        return self._workspace.view(dtype).as_strided((b - a, rows, columns), strides, offset // size)

    def _first(self, part: Part, transposed: bool) -> None:
        U, Vh = (factor[part.own] for factor in self._factors[part.weight])
        G = part.operand
        _multiply(G.mT if transposed else G, U if transposed else Vh.mT, part.product)

    def _second(self, part: Part, lying: bool) -> None:
        left, right = self._second_operands(part, lying)
        _multiply(left, right.mT if lying else right, part.result)

    def _second_operands(self, part: Part, lying: bool) -> tuple[Tensor, Tensor]:
        """Return left [n, d1, k] and right [n, k, d2], or [n, d2, k] where it is ``lying``."""
        U, Vh = (factor[part.own] for factor in self._factors[part.weight])
        return (U, part.folded) if lying else (part.folded, Vh)


def _matrices(factor: Tensor) -> Tensor:
    return factor.view(-1, *factor.shape[-2:])


def _multiply(A: Tensor, B: Tensor, out: Tensor) -> None:
    """Write A B [n, ., .] with sums in float32."""
    if A.is_cuda and A.dtype != torch.float32:
        torch.bmm(A, B, out_dtype=torch.float32, out=out)
    else:
        torch.bmm(A.float(), B.float(), out=out)
