"""The launches of a plan, bound to what they read and write."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from gsr_kernels.backends.triton import adamw_kernels
from gsr_kernels.backends.triton import step_kernels as kernels
from gsr_kernels.backends.triton.addresses import AddressTable
from gsr_kernels.backends.triton.configurations import BLOCK, options
from gsr_kernels.backends.triton.forms import Group, Span
from gsr_kernels.backends.triton.product import TYPES

Launch = Callable[..., object]


class Launches:
    """Binds kernels to the buffers that a plan lays out: nothing is looked up at a step."""

    rho: Tensor
    _floor: float
    _architecture: int
    _multiprocessors: int
    _addresses: AddressTable
    _tiles: Tensor
    _partials: Tensor
    _extremes: Tensor
    _g: Tensor
    _delta: Tensor
    _scales: Tensor
    _finite: Tensor
    _coefficients: Tensor
    # what walks tiles, each a table of its own in a group
    _walking: tuple[str, ...] = ("first_product", "second_product")
    _around: tuple[Launch, Launch] | None

    def _bind_measure(self, span: Span, aligned: bool) -> Launch:
        """Return the launch that finds max |G| of the gradients of one dtype, for fp16 operands of the whole model."""
        return partial(
            kernels.largest[self._grid(span.count * kernels.PIECES.value, 8)],
            self._addresses.table, span.start, span.count, self._extremes,
            G_DTYPE=TYPES[span.gradient], ALIGN=8 if aligned else 1, BLOCK=BLOCK, **options(),
        )  # fmt: skip

    def _bind_around(self) -> tuple[Launch, Launch]:
        """Return the launches before and after a step that updates."""
        grid, count = self._grid(len(self._finite), 1), len(self._finite)
        both = adamw_kernels.prepare, adamw_kernels.finish
        first, last = (partial(one[grid], self._addresses.table, count, **options(num_warps=1)) for one in both)
        self._around = first, last
        return self._around

    def _bind(self, group: Group, aligned: bool) -> list[Launch]:
        """Return the launches of one group: three, and a fourth where the first product is stored."""
        fold = [self._bind_fold(group, aligned)] if group.form.stored else []
        first, rescale = self._bind_first_product(group, aligned), self._bind_rescale(group)
        return [first, rescale, *fold, self.bind_second_product(group, aligned)]

    def _bind_first_product(self, group: Group, aligned: bool, kernel: str = "first_product") -> Launch:
        form, tiles = group.form, group.tiles[kernel]
        first = form.configuration(kernel, self._architecture, aligned)
        return partial(
            kernels.first_product[self._grid(tiles[1], first.per_multiprocessor)],
            self._addresses.table, self._tiles, *tiles, self._partials, self._extremes, int(form.stored),
            G_DTYPE=TYPES[form.gradient], ALIGN=8 if aligned else 1, TMA=kernel == "tma",
            **form.constants, **first.sizes, **first.options,
        )  # fmt: skip

    def _bind_rescale(self, group: Group) -> Launch:
        form = group.form
        return partial(
            kernels.rescale_all[self._grid(group.matrices[1], 1)],
            self._addresses.table, *group.matrices, self._partials, self._extremes, self._g, self._delta, self._scales,
            self._finite, self.rho, self._floor, int(form.transposed), int(form.stored),
            DTYPE=TYPES[form.operand], BLOCK=BLOCK, **options(num_warps=8),
        )  # fmt: skip

    def _bind_fold(self, group: Group, aligned: bool) -> Launch:
        form, tiles = group.form, group.tiles["first_product"]
        first = form.configuration("first_product", self._architecture, aligned)
        return partial(
            kernels.fold[self._grid(tiles[1], 4)],
            self._addresses.table, self._tiles, *tiles, self._delta, self._scales, DTYPE=TYPES[form.operand],
            TRANSPOSED=form.transposed, ALIGN=8 if aligned else 1, BM=first.BM, BN=first.BN, **options(num_warps=8),
        )  # fmt: skip

    def bind_second_product(self, group: Group, aligned: bool) -> Launch:
        """Return the last launch of a group, which works on what those before it left."""
        form, tiles = group.form, group.tiles["second_product"]
        second = form.configuration("second_product", self._architecture, aligned)
        return partial(
            kernels.second_product[self._grid(tiles[1], second.per_multiprocessor)],
            self._addresses.table, self._tiles, *tiles, self._delta, self._scales, self._finite,
            self._coefficients, G_DTYPE=TYPES[form.gradient], ALIGN=8 if aligned else 1,
            **form.constants_after, **form.written, **second.sizes, **second.options,
        )  # fmt: skip

    def _grid(self, work: int, per_multiprocessor: int) -> tuple[int]:
        return (max(1, min(work, per_multiprocessor * self._multiprocessors)),)
