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
        self._strides = [_matrices(basis).stride() for basis, _, _ in weights]
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
        # what does not lie as the table says, and the copy that the kernels work on
        self._copies: list[tuple[Tensor, Tensor]] = []

    def set(self, gradients: Sequence[Tensor], outs: Sequence[Tensor] | None) -> None:
        """Brings in the addresses of ``gradients`` and ``outs``, both one a weight; without outs G' goes over G.

        A tensor that does not lie as a contiguous weight does is worked on in a copy, which ``finish`` writes back.

        Raises ValueError where shape, dtype or device are not the plan's, or addresses moved that a graph holds.
        """
        targets = gradients if outs is None else outs
        if not len(gradients) == len(targets) == len(self._weights):
            raise ValueError(
                f"the plan has {len(self._weights)} weights, got {len(gradients)} G and {len(targets)} out"
            )
        for i in range(len(gradients)):
            self._check(i, gradients[i])
            self._check(i, targets[i])
        self._copies = []
        wanted = np.empty_like(self._current)
        for i, (G, out) in enumerate(zip(gradients, targets)):
            start, offsets = self._weights[i][2], self._offsets[i]
            source = self._laid_out(i, G)
            target = source if outs is None else self._laid_out(i, out)
            wanted[start : start + len(offsets), 0] = source.data_ptr() + offsets
            wanted[start : start + len(offsets), 1] = target.data_ptr() + offsets
        if not np.array_equal(wanted, self._current):
            self._upload(wanted)

    def finish(self) -> None:
        """Writes back what was worked on in a copy."""
        for tensor, copy in self._copies:
            tensor.copy_(copy)
        self._copies = []

    def _check(self, i: int, tensor: Tensor) -> None:
        basis, dtype, _ = self._weights[i]
        if tensor.shape not in (basis.shape, basis.weight_shape) or (tensor.dtype, tensor.device) != (
            dtype,
            self._device,
        ):
            raise ValueError(
                f"the plan was built for G {tuple(basis.weight_shape)} {dtype} on {self._device}, got "
                f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device}: build a plan for these"
            )

    def _laid_out(self, i: int, tensor: Tensor) -> Tensor:
        # the matrices of the weight, as they lie in a contiguous one
        basis = self._weights[i][0]
        matrices = tensor if tensor.shape == basis.shape else basis.split(tensor)
        if matrices.stride() == self._strides[i]:
            return matrices
        copy = basis.split(torch.empty(basis.weight_shape, dtype=tensor.dtype, device=tensor.device)).copy_(matrices)
        self._copies.append((matrices, copy))
        return copy

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
    return _matrices(basis).stride(-2)


def _matrices(basis: SpectralBasis) -> Tensor:
    return basis.split(torch.empty(basis.weight_shape, device="meta"))


def _offsets(basis: SpectralBasis) -> np.ndarray:
    # where the matrices of a contiguous weight begin, in elements and in the order of the basis
    *batch, _, _ = basis.shape
    offsets = np.zeros(batch, np.int64)
    for axis, (size, stride) in enumerate(zip(batch, _matrices(basis).stride())):
        shape = [1] * offsets.ndim
        shape[axis] = size
        offsets = offsets + (np.arange(size) * stride).reshape(shape)
    return offsets.reshape(-1)
