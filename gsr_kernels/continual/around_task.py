"""Steps before and after a task: what of its change to the weights is kept, and what may change at all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gsr_kernels.checks import check_number
from gsr_kernels.methods.base import wide
from gsr_kernels.optim.targets import linear_matrices


def pretrained(model: Any) -> dict[str, nn.Parameter]:
    """Return the parameters by name, without those of a classifier's head, which is new."""
    head = model.get_output_embeddings()
    known = {id(one) for part in (model.base_model, head) if part is not None for one in part.parameters()}
    return {name: one for name, one in model.named_parameters() if id(one) in known}


class AroundTask(ABC):
    """Base of what acts on a model when a task begins and when it has been learned, and on no step."""

    @abstractmethod
    def begin(self, model: nn.Module) -> None:
        """Ready the model for a task."""

    def end(self, model: nn.Module) -> None:
        """Change the model in place once the task has been learned."""


@dataclass
class FrozenRest(AroundTask):
    """Training of the linear weights of the repeated layers alone, and of a classifier's head.

    Embeddings, norms and biases stay as they are. Tied embeddings get a gradient in every row at every step, through
    the softmax, and Adam moves each of them as far as any other weight.
    """

    def begin(self, model: Any) -> None:
        """See AroundTask.begin."""
        trained = {id(target.parameter) for target in linear_matrices(model)}
        for parameter in pretrained(model).values():
            parameter.requires_grad_(id(parameter) in trained)


class KeptChange(AroundTask):
    """Base of those that keep a part of what a task has changed; the weights before the task are held until then."""

    def begin(self, model: nn.Module) -> None:
        """See AroundTask.begin."""
        self._before = {name: one.detach().clone() for name, one in pretrained(model).items() if one.requires_grad}

    @torch.no_grad()
    def end(self, model: nn.Module) -> None:
        """See AroundTask.end."""
        parameters = dict(model.named_parameters())
        matched = {id(target.parameter) for target in linear_matrices(model)}
        for name, before in self._before.items():
            W0, W = wide(before), wide(parameters[name].detach())
            parameters[name].copy_(W0 + self.kept(W0, W - W0, id(parameters[name]) in matched))
        self._before = {}

    @abstractmethod
    def kept(self, before: Tensor, change: Tensor, matched: bool) -> Tensor:
        """Return what is kept of the change of one parameter, ``matched`` where it is one for the methods."""


@dataclass
class Interpolation(KeptChange):
    """``W ← W_0 + alpha (W − W_0)`` of all trained parameters when a task has been learned.

    Args:
        alpha: in [0, 1].
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha, 0, 1)

    def kept(self, before: Tensor, change: Tensor, matched: bool) -> Tensor:
        """See KeptChange.kept."""
        return self.alpha * change


@dataclass
class SpectralShrink(KeptChange):
    """Interpolation in the singular basis of ``W_0``: top directions are moved least.

    ``Δ = U N Vh`` in the whole basis; ``N_ij`` is multiplied by ``sqrt(a_i a_j)``, ``a = alpha ^ (2 σ / (σ + mean σ))``,
    so that it is alpha where σ is the mean, 1 at σ = 0 and alpha² at the top; outside the span a is 1. What is no
    matched weight is interpolated by alpha.

    Args:
        alpha: in (0, 1].
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha, 0, 1, above=True)

    def kept(self, before: Tensor, change: Tensor, matched: bool) -> Tensor:
        """See KeptChange.kept."""
        if not matched:
            return self.alpha * change
        U, S, Vh = torch.linalg.svd(before, full_matrices=True)
        left, right = (
            torch.cat([S, S.new_zeros(*S.shape[:-1], size - S.shape[-1])], -1) for size in before.shape[-2:]
        )
        mean = S.mean(-1, keepdim=True)
        a, b = (self.alpha ** (sigma / (sigma + mean)) for sigma in (left, right))
        return U @ (a[..., :, None] * (U.mT @ change @ Vh.mT) * b[..., None, :]) @ Vh


@dataclass
class MagnitudeMask(KeptChange):
    """Largest entries of the change of each parameter; the others go back to what they were.

    Args:
        share: of the entries that are kept, in (0, 1].
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        check_number("share", self.share, 0, 1, above=True)

    def kept(self, before: Tensor, change: Tensor, matched: bool) -> Tensor:
        """See KeptChange.kept."""
        count = max(1, round(self.share * change.numel()))
        least = change.abs().flatten().kthvalue(change.numel() - count + 1).values
        return torch.where(change.abs() >= least, change, 0)
