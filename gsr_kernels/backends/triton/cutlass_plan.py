"""The step of a whole model whose second products are CUTLASS's, with AdamW behind them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from gsr_kernels.backends import cuda
from gsr_kernels.backends.triton.cublas_plan import CublasPlan, Part
from gsr_kernels.backends.triton.forms import Form, Group, Update
from gsr_kernels.backends.triton.launches import Launch
from gsr_kernels.backends.triton.moments import Moments, Settings
from gsr_kernels.basis import SpectralBasis

OPERAND, UPDATE = torch.float16, Update(torch.float32, torch.float32)


class CutlassPlan(CublasPlan):
    """A ``CublasPlan`` that never writes G': AdamW is the epilogue of the second product (csrc/second_product.h).

    That takes bases in fp16, and weights and moments in float32 without gaps, at multiples of 16 bytes and of sizes
    that are multiples of 8. A group with others goes as in ``CublasPlan``.
    """

    # of each weight G, W and the moments, while a step runs
    _moving: Sequence[tuple[Tensor, ...]] = ()

    def update(
        self,
        gradients: Sequence[Tensor],
        moments: Sequence[Moments],
        settings: Settings,
        bases: Sequence[SpectralBasis] | None = None,
    ) -> None:
        self._moving = [(G, one.weight, one.exp_avg, one.exp_avg_sq) for G, one in zip(gradients, moments)]
        super().update(gradients, moments, settings, bases)
        self._moving = ()

    def _bind_last(self, group: Group, aligned: bool, parts: Sequence[Part], write: Launch) -> list[Launch]:
        launches, form = super()._bind_last(group, aligned, parts, write), group.form
        if not (parts and aligned and (form.operand, form.update) == (OPERAND, UPDATE)):
            return launches
        return [partial(self._last, form, parts, launches)]

    def _last(self, form: Form, parts: Sequence[Part], launches: Sequence[Launch]) -> None:
        moving = [tensors for part in parts if (tensors := self._matrices_of(part, form))]
        if len(moving) < len(parts):
            for launch in launches:
                launch()
            return
        lying = form.transposed and form.stored
        for part, tensors in zip(parts, moving):
            scalars = (one[part.matrices] for one in (self._scales, self._coefficients, self._finite))
            cuda.second_product_adamw(*self._second_operands(part, lying), lying, not form.stored, *scalars, *tensors)

    def _matrices_of(self, part: Part, form: Form) -> list[Tensor] | None:
        """Return G, W and the moments as [n, d1, d2], None where one of them has gaps."""
        G, *kept = (self._addresses.matrices(part.weight, one) for one in self._moving[part.weight])
        # where G does not stay under the product it is not read
        tensors = [kept[0] if form.stored else G, *kept]
        if not all(one.is_contiguous() for one in tensors):
            return None
        return [one.view(-1, *one.shape[-2:])[part.own] for one in tensors]
