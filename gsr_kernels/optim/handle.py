"""What attach() returns: the live connection between a method and an optimizer."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from tqdm import tqdm

from gsr_kernels.basis import SpectralBasis, fingerprint, load_bases, save_bases
from gsr_kernels.methods import Method
from gsr_kernels.methods.base import State
from gsr_kernels.optim.metrics import Measures, measure_after, measure_before
from gsr_kernels.optim.targets import Target

# which optimizers have a handle, so that none is given two
_attached: weakref.WeakKeyDictionary[Optimizer, Handle] = weakref.WeakKeyDictionary()


@dataclass
class Weight:
    """One matrix under the method. It is found anew in the optimizer's groups at every step: wrappers swap parameters."""

    name: str
    place: tuple[int, int]
    rank: int | None
    heads: int | None
    basis: SpectralBasis
    state: State = field(default_factory=dict)
    # counters and measures stay on the device until they are asked for
    skipped: Tensor | None = None
    measures: Measures = field(default_factory=dict)


class Handle:
    """A method at work on an optimizer; see ``attach``.

    ``print(handle)`` shows the table of matched and skipped parameters.
    """

    def __init__(
        self, optimizer: Optimizer, method: Method, weights: list[Weight], found: list[Target], record_every: int, nonfinite: str
    ) -> None:
        self.method = method
        self.weights = weights
        self._optimizer = optimizer
        self._found = found
        self._record_every = record_every
        self._nonfinite = nonfinite
        self._steps = 0
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        _attached[optimizer] = self
