"""One step of the weights that are cut over ranks: partial sums, their reduction, each rank's piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import cast

import torch
from torch import Tensor

from gsr_kernels.basis import SpectralBasis
from gsr_kernels.distributed.buckets import Sums
from gsr_kernels.distributed.gather import gathered
from gsr_kernels.methods import GSR
from gsr_kernels.offload import visits
from gsr_kernels.ops import implementation
from gsr_kernels.weight import Weight

# the products of one weight before the sum, or those after it
Task = tuple[int, Callable[[int, SpectralBasis], None]]


def transform_shards(
    weights: Sequence[Weight],
    gradients: Sequence[Tensor | None],
    check: Callable[[list[Tensor]], None] | None = None,
) -> None:
    """Rewrites this rank's pieces of gradients in place and counts; every rank of every weight's mesh must call it.

    A gradient that is None here counts as zero: other ranks may have theirs. The sum of a matrix whose gradient holds
    NaN or Inf on any rank is so on all of them: it keeps its gradient as it came, with no further message. ``check``
    is given all sums before any gradient is rewritten, and may raise.

    Sums go out bucket by bucket, each under the first products of the next and the second products of the one before.
    """
    step = _Step(weights, gradients)
    first = [[(place, step.first) for place in bucket] for bucket in step.sums.buckets]
    second = [[(place, step.second) for place in bucket] for bucket in step.sums.buckets]
    if check is not None:
        step.run(first)
        check(step.sums.arrived())
        step.run(second)
    else:
        between = [tasks for pair in zip(first[1:], second) for tasks in pair]
        step.run([*first[:1], *between, *second[-1:]])


class _Step:
    def __init__(self, weights: Sequence[Weight], gradients: Sequence[Tensor | None]) -> None:
        self.weights, self.gradients = weights, gradients
        schemes, ranks = [weight.scheme for weight in weights], [weight.basis.rank for weight in weights]
        # one dtype on the wire, whatever the gradients of this rank have
        dtypes = [weight.basis.S.dtype for weight in weights]
        # of experts no rank has more than the first
        numbers = [prod(scheme.sums_shape(k, 0)) for scheme, k in zip(schemes, ranks)]
        sizes = [number * dtype.itemsize for number, dtype in zip(numbers, dtypes)]
        shapes = [scheme.sums_shape(k) for scheme, k in zip(schemes, ranks)]
        self.sums = Sums([scheme.layout for scheme in schemes], shapes, dtypes, sizes)
        # what a rank keeps of its first products for its second
        self._kept: dict[int, Sequence[Tensor]] = {}

    def run(self, buckets: Sequence[Sequence[Task]]) -> None:
        tasks = [task for bucket in buckets for task in bucket]
        bases = self._bases(tasks)
        for place, act in tasks:
            # by no name: what was gathered goes when it was used
            act(place, next(bases))

    def _bases(self, tasks: Sequence[Task]) -> Iterator[SpectralBasis]:
        """Those of the tasks, where and as they are used."""
        weights = [self.weights[place] for place, _ in tasks]
        visiting = visits([weight.basis for weight in weights], [weight.skipped.device for weight in weights])
        bases = (basis for _, several in visiting for basis in several)
        schemes = [weight.scheme for weight in weights]
        if not any(scheme.gathers for scheme in schemes):
            return bases
        asked = [s.gathers and (s.first or act == self.second) for s, (_, act) in zip(schemes, tasks)]
        return gathered(zip(schemes, bases, asked))

    def first(self, place: int, basis: SpectralBasis) -> None:
        scheme, G = self.weights[place].scheme, self.gradients[place]
        if G is None:
            part = torch.zeros(scheme.sums_shape(basis.rank), dtype=basis.S.dtype, device=basis.S.device)
        else:
            part, *self._kept[place] = scheme.partial(scheme.pieces(G, basis))
        self.sums.add(place, part)

    def second(self, place: int, basis: SpectralBasis) -> None:
        weight, G, sums = self.weights[place], self.gradients[place], self.sums.take(place)
        if G is None:
            return
        sums = sums.to(basis.S.device)
        scheme = weight.scheme
        pieces = scheme.pieces(G, basis)
        g = scheme.diagonal(sums, pieces)
        finite = g.isfinite().all(-1)
        rescaled = implementation("rescale", device=g.device)(g, basis.S, cast(GSR, weight.method).rho)
        delta = torch.where(finite.unsqueeze(-1), rescaled - g, 0).to(pieces[1].dtype)
        piece = scheme.rescaled(sums.to(pieces[1].dtype), self._kept.pop(place), pieces, delta)
        G.copy_(torch.where(finite[..., None, None], piece.mT if scheme.lying else piece, G))
        weight.steps += 1
        weight.finite = finite
        weight.skipped += (~finite).sum()
