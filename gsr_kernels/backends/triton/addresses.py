"""The device-side table of matrices, and how this step's addresses get into it."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gsr_kernels.backends.triton import fields
from gsr_kernels.backends.triton.configurations import in_capture
from gsr_kernels.backends.triton.forms import Form, Update
from gsr_kernels.backends.triton.moments import Moments
from gsr_kernels.basis import SpectralBasis

# the first fields of a row: what may differ from step to step; a stride follows its address
G, G_STRIDE, OUT, OUT_STRIDE = fields.G.value, fields.G_STRIDE.value, fields.OUT.value, fields.OUT_STRIDE.value
U, S, VH = fields.U.value, fields.S.value, fields.VH.value
FIRST_MOMENT, SECOND_MOMENT, COPY = fields.FIRST_MOMENT.value, fields.SECOND_MOMENT.value, fields.COPY.value
STEP, SKIPPED, SETTINGS = fields.STEP.value, fields.SKIPPED.value, fields.SETTINGS.value
MOVING = slice(G, SETTINGS + 1)
# what is read and written in vectors; S is read a number at a time
VECTORS = [G, OUT, U, VH, FIRST_MOMENT, SECOND_MOMENT, COPY]
# offsets inside a tile of 128 rows fit 32 bits
WIDEST = 2**23


class AddressTable:
    """One row of int64 a matrix, see ``step_kernels``; ``set`` brings in the gradients of a step.

    ``zero_grad(set_to_none=True)`` moves gradients every step: their addresses go up from two pinned buffers in turn,
    each guarded by an event, so that the host waits for nothing but an upload of two steps ago.

    Args:
        weights: of each weight its basis, of which nothing but addresses is kept, its form, and its first row.
        rows: the fields of every matrix but those of ``MOVING``.
        groups: ranges of rows, whose addresses and strides are looked at together for alignment.

    Attributes:
        frozen: a CUDA graph holds the addresses; others are refused from then on.
        rows: of each weight the rows of its matrices.
        aligned: of each group, whether every address is a multiple of 16 bytes and every stride one of 8; until the
            first gradients come it is taken to be so.
    """

    def __init__(
        self,
        weights: Sequence[tuple[SpectralBasis, Form, int]],
        rows: Sequence[dict[int, int]],
        groups: Sequence[tuple[int, int]],
        device: torch.device,
    ) -> None:
        self.frozen = False
        self.aligned = [True] * len(groups)
        self._shapes = [basis.to("meta") for basis, _, _ in weights]
        self._forms = [form for _, form, _ in weights]
        self.rows = [slice(start, start + basis.S.numel() // basis.rank) for basis, _, start in weights]
        self._groups = groups
        self._device = device
        values = np.zeros((len(rows), fields.FIELDS.value), np.int64)
        for row, given in zip(values, rows):
            row[list(given)] = list(given.values())
        # the weight of every row, and the bytes of an entry of what AdamW keeps of it
        self._of = np.zeros(len(rows), np.int64)
        for i, place in enumerate(self.rows):
            self._of[place] = i
        updates = [form.update or Update(form.gradient, form.gradient) for form in self._forms]
        self._moment = np.array([one.moment.itemsize for one in updates])[self._of]
        self._copied = np.array([one.copied.itemsize if one.copied else 0 for one in updates])[self._of]
        self._brought: list[weakref.ref[SpectralBasis]] = []
        self._bring(values, [basis for basis, _, _ in weights])
        self._brought = [weakref.ref(basis) for basis, _, _ in weights]
        host = torch.from_numpy(values)
        pinned = device.type == "cuda"
        self._buffers = [host.pin_memory(), host.clone().pin_memory()] if pinned else [host]
        self._events = [torch.cuda.Event(), torch.cuda.Event()] if pinned else []
        self.table = host.to(device) if pinned else host
        self._current = values[:, MOVING].copy()
        self._turn = 0
        # shapes, strides and dtypes of the last step, and whether all of it was taken where it lay
        self._described: list[tuple[Any, ...]] = []
        self._written: list[tuple[Any, ...]] = []
        self._moments: Sequence[Moments] | None = None
        self._direct = False
        # what the kernels cannot take as it lies, and the copy that they work on
        self._copies: list[tuple[Tensor, Tensor]] = []
        self._sources: list[Tensor] = []

    def set(
        self,
        gradients: Sequence[Tensor],
        outs: Sequence[Tensor] | None = None,
        bases: Sequence[SpectralBasis] | None = None,
        capturing: bool = False,
        moments: Sequence[Moments] | None = None,
    ) -> None:
        """Bring in the addresses of ``gradients`` and ``outs``, both one a weight; without outs G' goes over G.

        With ``moments`` the outs are the weights that AdamW moves, whose strides are those of the moments.

        Matrices whose rows are contiguous are taken where they lie. Any other is worked on in a copy, which ``finish``
        writes back. ``bases`` take the place of those of the building, alike in all but their addresses. Under capture,
        or ``capturing`` for one that begins, nothing may be copied; under capture nothing may have moved either, and
        from then on it may not move.

        Raises ValueError where shape, dtype or device are not the plan's, or a graph could not hold the addresses.
        """
        targets = gradients if outs is None else outs
        if not len(gradients) == len(targets) == len(self._shapes):
            raise ValueError(f"the plan has {len(self._shapes)} weights, got {len(gradients)} G and {len(targets)} out")
        # moments are made anew with whatever they hold: of the same ones nothing but a parameter can have moved
        kept = moments is not None and moments is self._moments
        described = [(one.shape, one.stride(), one.dtype, one.get_device()) for one in gradients]
        written = [(one.shape, one.stride(), one.dtype, one.get_device()) for one in outs or ()] if not kept else []
        known = described == self._described and (kept or written == self._written)
        if not known:
            self._check(gradients, targets)
            self._direct = all(self._taken(i, one) for given in (gradients, targets) for i, one in enumerate(given))
        under_capture = in_capture(self._device)
        held = self.frozen or under_capture
        self._copies = []
        if not self._direct:
            copying = not (held or capturing)
            sources = [self._laid_out(i, one, copying) for i, one in enumerate(gradients)]
            if outs is None:
                targets = sources
            else:
                # what was only read is not written back; the copies live as long as their list
                self._sources, self._copies = sources, []
                targets = [self._laid_out(i, one, copying) for i, one in enumerate(outs)]
            gradients = sources
        if not (known and self._direct):
            self._lying = [self._lie(gradients), self._lie(targets)]
        # only now: what was refused is not known
        self._described = described
        if not kept:
            self._written, self._moments = written, None

        wanted = self._current.copy()
        if bases is not None:
            self._bring(wanted, bases)
        for field, given, (offsets, strides) in zip((G, OUT), (gradients, targets), self._lying):
            size = np.fromiter((one.itemsize for one in given), np.int64)[self._of]
            wanted[:, field], wanted[:, field + 1] = self._pointers(given) + offsets * size, strides
        if moments is not None:
            # even of the same tensors: their memory may have been swapped
            offsets = self._lying[1][0]
            wanted[:, FIRST_MOMENT] = self._pointers([one.exp_avg for one in moments]) + offsets * self._moment
            wanted[:, SECOND_MOMENT] = self._pointers([one.exp_avg_sq for one in moments]) + offsets * self._moment
            wanted[:, STEP] = self._pointers([one.step for one in moments])
            wanted[:, SKIPPED] = self._pointers([one.skipped for one in moments])
            if self._copied.any():
                wanted[:, COPY] = self._pointers([one.copy for one in moments]) + offsets * self._copied
            if not kept:
                wanted[:, SETTINGS] = np.fromiter((one.group for one in moments), np.int64)[self._of]
        if not np.array_equal(wanted, self._current):
            if held:
                raise ValueError(
                    "gradients are not where the captured graph reads them: keep them in place with "
                    "zero_grad(set_to_none=False), run one step on them before capture, or capture again with a new "
                    "plan"
                )
            self._upload(wanted)
        if bases is not None:
            self._brought = [weakref.ref(basis) for basis in bases]
        self._moments = moments
        self.frozen |= under_capture

    def holds(self, bases: Sequence[SpectralBasis]) -> bool:
        """Return whether these are the bases of the last step."""
        return len(self._brought) == len(bases) and all(one() is basis for one, basis in zip(self._brought, bases))

    def finish(self) -> None:
        """Write back what was worked on in a copy."""
        for tensor, copy in self._copies:
            tensor.copy_(copy)
        self._copies, self._sources = [], []

    def _bring(self, values: npt.NDArray[np.int64], bases: Sequence[SpectralBasis]) -> None:
        if self.holds(bases):
            return
        for rows, basis in zip(self.rows, bases):
            place = np.arange(rows.stop - rows.start)
            for field, factor in ((U, basis.U), (S, basis.S), (VH, basis.Vh)):
                size = factor.numel() // len(place) * factor.element_size()
                values[rows, field] = factor.data_ptr() + place * size

    def _check(self, gradients: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
        for basis, form, gradient, target in zip(self._shapes, self._forms, gradients, targets):
            written = form.gradient if form.update is None else form.update.weight
            for tensor, dtype in ((gradient, form.gradient), (target, written)):
                fits = tensor.shape in (basis.shape, basis.weight_shape)
                if not fits or (tensor.dtype, tensor.device) != (dtype, self._device):
                    raise ValueError(
                        f"the plan was built for G {tuple(basis.weight_shape)} {dtype} on {self._device}, got "
                        f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device}: build a plan for these"
                    )

    def matrices(self, i: int, tensor: Tensor) -> Tensor:
        """Return a tensor of the shape of weight i as its matrices."""
        basis = self._shapes[i]
        return tensor if tensor.shape == basis.shape else basis.split(tensor)

    def _taken(self, i: int, tensor: Tensor) -> bool:
        # whether the matrices of a weight lie row by row
        matrices = self.matrices(i, tensor)
        return _row_by_row(matrices.shape, matrices.stride())

    def _laid_out(self, i: int, tensor: Tensor, copying: bool) -> Tensor:
        if self._taken(i, tensor):
            return tensor
        if not copying:
            raise ValueError(
                f"a gradient {tuple(tensor.shape)} with strides {tensor.stride()} needs a copy, which a CUDA graph "
                "cannot hold: call .contiguous() on it before capture"
            )
        matrices = self.matrices(i, tensor)
        copy = matrices.contiguous()
        self._copies.append((matrices, copy))
        return copy

    def _lie(self, tensors: Sequence[Tensor]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return of every row where its matrix begins in its weight, and the stride of its rows, both in elements."""
        offsets, strides = np.zeros(len(self._of), np.int64), np.zeros(len(self._of), np.int64)
        for i, (tensor, rows) in enumerate(zip(tensors, self.rows)):
            matrices = self.matrices(i, tensor)
            *batch, d1, d2 = matrices.shape
            offsets[rows] = _offsets(tuple(batch), matrices.stride()[:-2])
            strides[rows] = d2 if d1 == 1 else matrices.stride(-2)
        return offsets, strides

    def _pointers(self, tensors: Sequence[Tensor | None]) -> npt.NDArray[np.int64]:
        # of every row the address of its weight's tensor
        return np.fromiter((0 if one is None else one.data_ptr() for one in tensors), np.int64)[self._of]

    def _upload(self, wanted: npt.NDArray[np.int64]) -> None:
        self._turn = (self._turn + 1) % len(self._buffers)
        buffer = self._buffers[self._turn]
        if self._events:
            self._events[self._turn].synchronize()
        buffer.numpy()[:, MOVING] = wanted
        if self._events:
            self.table.copy_(buffer, non_blocking=True)
            self._events[self._turn].record()
        self._current = wanted
        odd = np.hstack([wanted[:, VECTORS] % 16, wanted[:, [G_STRIDE, OUT_STRIDE]] % 8])
        self.aligned = [not odd[start : start + count].any() for start, count in self._groups]


@lru_cache(maxsize=4096)
def _row_by_row(shape: torch.Size, stride: tuple[int, ...]) -> bool:
    *batch, d1, d2 = shape
    row, column = stride[-2:]
    # a matrix of one row or column has no stride to speak of; matrices that overlap cannot be written over
    lying = (d2 == 1 or column == 1) and (d1 == 1 or d2 <= row < WIDEST)
    return lying and all(size == 1 or step > 0 for size, step in zip(batch, stride))


@lru_cache(maxsize=4096)
def _offsets(batch: tuple[int, ...], strides: tuple[int, ...]) -> npt.NDArray[np.int64]:
    # where the matrices begin, in elements and in the order of the basis
    offsets = np.zeros(1, np.int64)
    for size, stride in zip(batch, strides):
        offsets = (offsets[:, None] + np.arange(size) * stride).reshape(-1)
    return offsets
