"""The step of a whole model whose first products come by the tensor memory accelerator (TMA) of Hopper."""

from __future__ import annotations

from contextvars import copy_context
from functools import partial

import torch
import triton
from torch import Tensor
from triton.runtime import _allocation

from gsr_kernels.backends.triton.forms import Group
from gsr_kernels.backends.triton.launches import Launch
from gsr_kernels.backends.triton.plan import Plan


class TmaPlan(Plan):
    """A ``Plan`` whose first products are computed in tiles of 128 x 256 that TMA brings.

    Its descriptors hold an address and strides that are multiples of 16 bytes: a group with others goes as in ``Plan``.
    """

    _walking = (*Plan._walking, "tma")
    # where programs write their descriptors
    _scratch: Tensor | None = None

    def _bind_first_product(self, group: Group, aligned: bool, kernel: str = "tma") -> Launch:
        if not aligned:
            return super()._bind_first_product(group, aligned)
        return partial(self._apart, super()._bind_first_product(group, aligned, kernel))

    def _apart(self, launch: Launch) -> None:
        """Launch with memory for descriptors, and leave Triton's allocator to everybody else as it was."""
        copy_context().run(self._with_memory, launch)

    def _with_memory(self, launch: Launch) -> None:
        # Triton 3.4 has one allocator for all contexts, later ones a ContextVar
        before = _allocation._allocator
        triton.set_allocator(self._allocate)
        try:
            launch()
        finally:
            _allocation._allocator = before

    def _allocate(self, size: int, alignment: int, stream: int | None) -> Tensor:
        # launches of a plan follow one another on its stream, and share it
        if self._scratch is None or self._scratch.numel() < size:
            self._scratch = torch.empty(size, dtype=torch.uint8, device=self.device)
        return self._scratch
