"""Bases that stay in host memory and visit the weights' device at every step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from gsr_kernels.basis import SpectralBasis

# what is on the device at a time is at most twice this, in bytes, or two bases if one is larger
GROUP = 256 * 2**20

BASIS_DEVICES = (None, "cpu")


def in_host_memory(basis: SpectralBasis) -> SpectralBasis:
    """Return the basis in host memory; pinned, where it comes from a GPU, so that others work while it comes back."""

    def hosted(factor: Tensor) -> Tensor:
        if not factor.is_cuda:
            return factor.cpu()
        return torch.empty_like(factor, device="cpu", pin_memory=True).copy_(factor)

    return replace(basis, U=hosted(basis.U), S=hosted(basis.S), Vh=hosted(basis.Vh))


def visits(
    bases: Sequence[SpectralBasis], devices: Sequence[torch.device], group: int | None = None
) -> Iterator[tuple[slice, list[SpectralBasis]]]:
    """Yield the bases on their devices, a group at a time, and which they are; the next are on their way meanwhile."""
    coming: tuple[slice, _Copies] | None = None
    for part in [*_groups(bases, devices, GROUP if group is None else group), None]:
        started = None if part is None else (part, _Copies(bases[part], devices[part]))
        if coming is not None:
            yield coming[0], coming[1].arrived()
        coming = started


class _Copies:
    """Bases on their way to their devices, each device's on a stream of its own."""

    def __init__(self, bases: Sequence[SpectralBasis], devices: Sequence[torch.device]) -> None:
        self.events: dict[torch.device, torch.cuda.Event] = {}
        self.bases = []
        for basis, device in zip(bases, devices):
            if device.type != "cuda" or basis.U.is_cuda:
                self.bases.append(basis.to(device))
                continue
            stream = _stream(device)
            with torch.cuda.stream(stream):
                factors = [factor.to(device, non_blocking=True) for factor in (basis.U, basis.S, basis.Vh)]
                self.bases.append(replace(basis, U=factors[0], S=factors[1], Vh=factors[2]))
                self.events[device] = stream.record_event()

    def arrived(self) -> list[SpectralBasis]:
        """Return the bases, for use on the current stream."""
        for device, event in self.events.items():
            torch.cuda.current_stream(device).wait_event(event)
        for basis in self.bases:
            if basis.U.device in self.events:
                # the allocator must not give their memory away before the current stream is done with it
                for factor in (basis.U, basis.S, basis.Vh):
                    factor.record_stream(torch.cuda.current_stream(basis.U.device))
        return self.bases


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _groups(bases: Sequence[SpectralBasis], devices: Sequence[torch.device], most: int) -> Iterator[slice]:
    start, size = 0, 0
    for index, (basis, device) in enumerate(zip(bases, devices)):
        coming = 0 if basis.U.device == device else basis.nbytes
        if index > start and size + coming > most:
            yield slice(start, index)
            start, size = index, 0
        size += coming
    yield slice(start, len(bases))
