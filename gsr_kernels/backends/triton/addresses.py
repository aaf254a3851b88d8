"""The device-side table of matrices, and how this step's addresses get into it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gsr_kernels.backends.triton import step_kernels as kernels
from gsr_kernels.basis import SpectralBasis


class AddressTable:
    """One row of int64 a matrix, see ``step_kernels``; ``set`` brings in the gradients of a step.

    ``zero_grad(set_to_none=True)`` moves gradients every step: their addresses go up from two pinned buffers in turn,
    each guarded by an event, so that the host waits for nothing but an upload of two steps ago.

    Args:
        weights: of each weight its basis, the dtype of its gradient and its first row.
        rows: the fields of every matrix but G and OUT.
        groups: ranges of rows, whose addresses are looked at together for alignment.
    """

    def __init__(
        self,
        weights: Sequence[tuple[SpectralBasis, torch.dtype, int]],
        rows: Sequence[dict[int, int]],
        groups: Sequence[tuple[int, int]],
        device: torch.device,
    ) -> None:
        self.frozen = False
        self.aligned = [False] * len(groups)
        self._weights = weights
        self._groups = groups
        self._device = device
        self._offsets = [_offsets(basis) * dtype.itemsize for basis, dtype, _ in weights]
        values = np.zeros((len(rows), kernels.FIELDS.value), np.int64)
        for row, fields in zip(values, rows):
            row[list(fields)] = list(fields.values())
        host = torch.from_numpy(values)
        pinned = device.type == "cuda"
        self._buffers = [host.pin_memory(), host.clone().pin_memory()] if pinned else [host]
        self._events = [torch.cuda.Event(), torch.cuda.Event()] if pinned else []
        self.table = host.to(device) if pinned else host
        self._current = np.zeros((len(rows), 2), np.int64)
        self._turn = 0
        # copies that the kernels work on, and where they go back to
        self._copies: list[Tensor] = []
        self._returns: list[tuple[Tensor, Tensor]] = []

    def set(self, gradients: Sequence[Tensor], outs: Sequence[Tensor]) -> None:
        """Brings in the addresses of ``gradients`` and ``outs``, both one a weight.

        A tensor that is not contiguous is worked on in a contiguous copy, which ``finish`` writes back.

        Raises ValueError where shape, dtype or device are not the plan's, or addresses moved that a graph holds.
        """
        if not len(gradients) == len(outs) == len(self._weights):
            raise ValueError(f"the plan has {len(self._weights)} weights, got {len(gradients)} G and {len(outs)} out")
        for tensors in (gradients, outs):
            for tensor, (basis, dtype, _) in zip(tensors, self._weights):
                if tensor.shape != basis.weight_shape or tensor.dtype != dtype or tensor.device != self._device:
                    raise ValueError(
                        f"the plan was built for G {tuple(basis.weight_shape)} {dtype} on {self._device}, got "
                        f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device}: build a plan for these"
                    )
        self._copies, self._returns = [], []
        wanted = np.empty_like(self._current)
        for G, out, (_, _, start), offsets in zip(gradients, outs, self._weights, self._offsets):
            source = G if G.is_contiguous() else G.contiguous()
            target = source if out is G else out if out.is_contiguous() else torch.empty_like(source)
            if source is not G:
                self._copies.append(source)
            if target is not out:
                self._returns.append((out, target))
            wanted[start : start + len(offsets), 0] = source.data_ptr() + offsets
            wanted[start : start + len(offsets), 1] = target.data_ptr() + offsets
        if not np.array_equal(wanted, self._current):
            self._upload(wanted)

    def finish(self) -> None:
        """Writes back what was worked on in a copy."""
        for out, target in self._returns:
            out.copy_(target)
        self._copies, self._returns = [], []

    def _upload(self, wanted: np.ndarray) -> None:
        if self.frozen or (self._device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
            raise ValueError(
                "gradients are not where the captured graph reads them: keep them in place with "
                "zero_grad(set_to_none=False), run one step on them before capture, or capture again with a new plan"
            )
        self._turn = (self._turn + 1) % len(self._buffers)
        buffer = self._buffers[self._turn]
        if self._events:
            self._events[self._turn].synchronize()
        buffer.numpy()[:, [kernels.G.value, kernels.OUT.value]] = wanted
        if self._events:
            self.table.copy_(buffer, non_blocking=True)
            self._events[self._turn].record()
        self._current = wanted
        self.aligned = [not (wanted[start : start + count] % 16).any() for start, count in self._groups]


def matrix_stride(basis: SpectralBasis) -> int:
    """Elements from one row to the next of a matrix inside a contiguous weight."""
    return basis.split(torch.empty(basis.weight_shape, device="meta")).stride(-2)


def _offsets(basis: SpectralBasis) -> np.ndarray:
    # where the matrices of a contiguous weight begin, in elements and in the order of the basis
    matrices = basis.split(torch.empty(basis.weight_shape, device="meta"))
    offsets = np.zeros(matrices.shape[:-2], np.int64)
    for axis, (size, stride) in enumerate(zip(offsets.shape, matrices.stride())):
        shape = [1] * offsets.ndim
        shape[axis] = size
        offsets = offsets + (np.arange(size) * stride).reshape(shape)
    return offsets.reshape(-1)
