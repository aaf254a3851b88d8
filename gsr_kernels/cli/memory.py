"""Memory of training on one device, part by part."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

# of a CPU, as seen on models of three kinds: a decomposition, in float64, takes so many times its weight's float32,
# which the allocator keeps, and LAPACK
DECOMPOSITION = 12
LAPACK = 19 * 10**6


@dataclass(frozen=True)
class Memory:
    """Bytes on a device; ``activations`` are None where the model does not run without values."""

    weights: int
    gradients: int
    moments: int
    bases: int
    activations: int | None
    # of what a method keeps of earlier tasks or of the weights before this one, of the part that is saved with the
    # model, and of a copy to answer with
    kept: int
    saved: int
    copied: int
    # for the largest basis to be taken, and by libraries
    decomposition: int
    # beside the gradients, of the largest parameter, and of an allocator
    beside: int

    @property
    def peak(self) -> int:
        """Return the most that is there at once: in a step, or beside a copy to answer with.

        Without known activations it is a lower bound.
        """
        # gradients arise as the activations go, and an allocator keeps what these took
        step = self.gradients + (self.activations or 0) + self.beside
        held = self.weights + self.bases + self.kept + self.decomposition
        return held + max(self.moments + step, self.copied)


def decomposed(shapes: Iterable[Sequence[int]]) -> int:
    """Return the bytes that decompositions of weights of these shapes leave, one after the other."""
    return DECOMPOSITION * 4 * max(d1 * d2 for d1, d2 in shapes) + LAPACK * (device() == "cpu")


def device() -> str:
    """Return the type of the device that a run trains on."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def room() -> int:
    """Return the bytes of that device, all of them."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[1]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
