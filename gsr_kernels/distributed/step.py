"""Step of the weights that are sharded over ranks: products, one all-reduce a bucket and mesh dimension, products."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor

from gsr_kernels.basis import SpectralBasis
from gsr_kernels.distributed.layout import Layout
from gsr_kernels.distributed.schemes import factor_shapes
from gsr_kernels.distributed.shard import gathered
from gsr_kernels.methods import GSR
from gsr_kernels.offload import visits
from gsr_kernels.ops import implementation
from gsr_kernels.weight import Weight

# bytes: a bucket is full with the weight that reaches them. A tenth of it would pay the latency of the wire more often
# than it hides, and two are held at a time. The diagonals of all but the largest models are one
BUCKET = 200 * 2**20

# index of a weight, and False for its products before the sum, True for those after it
Task = tuple[int, bool]


@dataclass(frozen=True, eq=False)
class Bucket:
    """Parts that one all-reduce a mesh dimension sums: indices of their weights, in order, and what they are."""

    indices: list[int]
    shapes: list[torch.Size]
    dtype: torch.dtype
    layout: Layout


def make_buckets(
    layouts: Sequence[Layout], shapes: Sequence[torch.Size], dtypes: Sequence[torch.dtype], sizes: Sequence[int]
) -> list[Bucket]:
    """Return the buckets of the parts of such sums; ``sizes`` are bytes, equal on every rank whatever it holds."""
    # of one mesh, sharded by the same groups: ranks of one need not have the weights of another
    before: dict[object, int] = {}
    found: dict[object, Bucket] = {}
    for index, (layout, shape, dtype, size) in enumerate(zip(layouts, shapes, dtypes, sizes)):
        kind = tuple(layout.ranks), tuple(layout.sum_groups), dtype
        bucket = found.setdefault((kind, before.get(kind, 0) // BUCKET), Bucket([], [], dtype, layout))
        bucket.indices.append(index)
        bucket.shapes.append(shape)
        before[kind] = before.get(kind, 0) + size
    return list(found.values())


class ShardedStep:
    """Rewrites this rank's shards of gradients; sums go out bucket by bucket, each under the products of others."""

    def __init__(self, weights: Sequence[Weight]) -> None:
        self._weights, self._key = weights, _key(weights)
        schemes, bases = [weight.scheme for weight in weights], [weight.basis for weight in weights]
        # one dtype on the wire, whatever the gradients of this rank have
        dtypes = [basis.S.dtype for basis in bases]
        shapes = [torch.Size(scheme.sums_shape(basis.rank)) for scheme, basis in zip(schemes, bases)]
        # of experts no rank has more than the first
        elements = [prod(scheme.sums_shape(basis.rank, 0)) for scheme, basis in zip(schemes, bases)]
        sizes = [number * dtype.itemsize for number, dtype in zip(elements, dtypes)]
        buckets = make_buckets([scheme.layout for scheme in schemes], shapes, dtypes, sizes)
        self._bucket_of = {index: bucket for bucket in buckets for index in bucket.indices}
        first, second = ([[(i, after) for i in bucket.indices] for bucket in buckets] for after in (False, True))
        between = [tasks for pair in zip(first[1:], second) for tasks in pair]
        self._first, self._second = list(chain(*first)), list(chain(*second))
        self._overlapped = list(chain(*first[:1], *between, *second[-1:]))
        # of what ranks share, and need whole, of a weight's factors
        self._factors: dict[int, Mapping[str, Layout]] = {
            index: scheme.factors(factor_shapes(basis.shape, basis.rank))
            for index, (scheme, basis) in enumerate(zip(schemes, bases))
            if scheme.gathers
        }
        self._offloaded = any(weight.offloaded for weight in weights)
        self._rescale = [implementation("rescale", device=weight.skipped.device) for weight in weights]

    def fits(self) -> bool:
        """Return whether the bases still have the shapes and dtypes that the buckets were made for."""
        return self._key == _key(self._weights)

    def rewrite(self, gradients: Sequence[Tensor | None], check: Callable[[list[Tensor]], None] | None = None) -> None:
        """Rewrite gradients in place, None as zero, and count; every rank of every weight's mesh must call it.

        The sum of a matrix whose gradient holds NaN or Inf on any rank is so on all of them: it keeps its gradient as
        it came. ``check`` is given all sums before any gradient is rewritten, and may raise.
        """
        self._gradients, self._sums = gradients, Sums(self._bucket_of)
        # what a rank keeps of its first products for its second
        self._kept: dict[int, Sequence[Tensor]] = {}
        if check is None:
            self._run(self._overlapped)
        else:
            self._run(self._first)
            check(self._sums.all())
            self._run(self._second)
        del self._gradients, self._sums, self._kept

    def _run(self, tasks: Sequence[Task]) -> None:
        bases = self._bases(tasks)
        for index, after in tasks:
            # by no name: what was gathered goes when it was used
            (self.second if after else self.first)(index, next(bases))

    def _bases(self, tasks: Sequence[Task]) -> Iterator[SpectralBasis]:
        """Return the bases of the tasks, where and as they are used."""
        weights = [self._weights[index] for index, _ in tasks]
        bases = (weight.basis for weight in weights)
        if self._offloaded:
            visiting = visits([weight.basis for weight in weights], [weight.skipped.device for weight in weights])
            bases = (basis for _, several in visiting for basis in several)
        if not self._factors:
            return bases
        needed = [weight.scheme.first or after for weight, (_, after) in zip(weights, tasks)]
        layouts = (self._factors.get(index) if whole else None for whole, (index, _) in zip(needed, tasks))
        return gathered(zip(bases, layouts))

    def first(self, index: int, basis: SpectralBasis) -> None:
        scheme, G = self._weights[index].scheme, self._gradients[index]
        if G is None or not G.numel():
            self._sums.add(index, None)
        else:
            part, *self._kept[index] = scheme.partial(scheme.operands(G, basis))
            self._sums.add(index, part)

    def second(self, index: int, basis: SpectralBasis) -> None:
        weight, G, sums = self._weights[index], self._gradients[index], self._sums.take(index)
        if G is None:
            return
        sums = sums.to(basis.S.device)
        scheme = weight.scheme
        operands = scheme.operands(G, basis)
        g = scheme.diagonal(sums, operands)
        finite = g.isfinite().all(-1)
        # a rank without elements may lack factors, and has nothing to rewrite
        if G.numel():
            rescaled = self._rescale[index](g, basis.S, cast(GSR, weight.method).rho)
            delta = torch.where(finite.unsqueeze(-1), rescaled - g, 0).to(operands[1].dtype)
            shard = scheme.shard(sums.to(operands[1].dtype), self._kept.pop(index), operands, delta)
            G.copy_(torch.where(finite.view(*finite.shape, *[1] * (G.ndim - finite.ndim)), shard, G))
        weight.steps += 1
        weight.finite = finite
        weight.skipped += (~finite).sum()


def _key(weights: Sequence[Weight]) -> list[object]:
    return [(weight.scheme, weight.basis.S.shape, weight.basis.S.dtype) for weight in weights]


class Sums:
    """Parts of sums that go to the other ranks as soon as their bucket is full; add them in the buckets' order."""

    def __init__(self, bucket_of: Mapping[int, Bucket]) -> None:
        self._bucket_of = bucket_of
        self._parts: dict[int, Tensor] = {}
        self._filling = torch.empty(0)
        self._under_way: dict[Bucket, dist.Work] = {}

    def add(self, index: int, part: Tensor | None) -> None:
        """Take a copy of a part, None for zeros; the last one of a bucket has it sent."""
        bucket = self._bucket_of[index]
        if index == bucket.indices[0]:
            counts = [shape.numel() for shape in bucket.shapes]
            self._filling = torch.empty(sum(counts), dtype=bucket.dtype, device=bucket.layout.device)
            views = [one.view(shape) for one, shape in zip(self._filling.split(counts), bucket.shapes)]
            self._parts.update(zip(bucket.indices, views))
        if part is None:
            self._parts[index].zero_()
        else:
            self._parts[index].copy_(part)
        if index == bucket.indices[-1]:
            # in every group of ranks the buckets come in this order, whatever other groups each of its ranks is in;
            # sums of sums would come out wrong in any other order of mesh dimensions
            *before, last = bucket.layout.sum_groups.values()
            for group in before:
                dist.all_reduce(self._filling, group=group)
            self._under_way[bucket] = dist.all_reduce(self._filling, group=last, async_op=True)
            self._filling = torch.empty(0)

    def take(self, index: int) -> Tensor:
        """Return the sum that a part of a full bucket has gone into, where the ranks communicate; once."""
        under_way = self._under_way.pop(self._bucket_of[index], None)
        if under_way is not None:
            under_way.wait()
        return self._parts.pop(index)

    def all(self) -> list[Tensor]:
        """Return every sum, by index; all buckets must be full."""
        for one in self._under_way.values():
            one.wait()
        self._under_way.clear()
        return [self._parts[index] for index in sorted(self._parts)]
