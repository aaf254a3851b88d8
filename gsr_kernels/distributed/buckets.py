"""Sums over ranks, some bytes at a time: what is on its way travels while others are computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from gsr_kernels.distributed.layout import Layout

# bytes: a bucket is full with the weight that reaches them. A tenth of it would pay the latency of the wire more often
# than it hides (bench/sharded.py), and two are held at a time. The diagonals of all but the largest models are one
BUCKET = 200 * 2**20


class Sums:
    """Parts of sums that go to the other ranks as soon as their bucket is full.

    Args:
        layouts: those of the tensors that the parts are of.
        sizes: bytes of each part, the same on every rank whatever it holds: all must fill their buckets alike.

    Attributes:
        buckets: the places of the parts in each; parts are to be added in this order.
    """

    def __init__(self, layouts: Sequence[Layout], sizes: Sequence[int]) -> None:
        self._layouts = layouts
        self.buckets = _buckets(layouts, sizes)
        self._of = {place: bucket for bucket, places in enumerate(self.buckets) for place in places}
        self._parts: dict[int, Tensor] = {}
        self._under_way: dict[int, Iterator[None]] = {}

    def add(self, place: int, part: Tensor) -> None:
        """Takes a part; the last one of a bucket has it sent."""
        self._parts[place] = part
        bucket = self._of[place]
        if place == self.buckets[bucket][-1]:
            self._under_way[bucket] = _reducing(self._parts, self.buckets[bucket], self._layouts)
            # those before go on to the next of their groups of ranks
            for sums in self._under_way.values():
                next(sums, None)

    def take(self, place: int) -> Tensor:
        """The sum that a part has gone into, once: it is not kept. Its bucket must be full."""
        self._arrive(self._of[place])
        return self._parts.pop(place)

    def all(self) -> list[Tensor]:
        """Every sum, in the order of the layouts; all buckets must be full."""
        for bucket in range(len(self.buckets)):
            self._arrive(bucket)
        return [self._parts[place] for place in range(len(self._layouts))]

    def _arrive(self, bucket: int) -> None:
        for _ in self._under_way.pop(bucket, ()):
            pass


def _buckets(layouts: Sequence[Layout], sizes: Sequence[int]) -> list[list[int]]:
    # counted in each mesh apart: ranks of one need not have the weights of another
    before: dict[tuple[int, ...], int] = {}
    found: dict[int, list[int]] = {}
    for place, (layout, size) in enumerate(zip(layouts, sizes)):
        mesh = tuple(layout.ranks)
        found.setdefault(before.get(mesh, 0) // BUCKET, []).append(place)
        before[mesh] = before.get(mesh, 0) + size
    return [found[number] for number in sorted(found)]


def _reducing(parts: dict[int, Tensor], places: Sequence[int], layouts: Sequence[Layout]) -> Iterator[None]:
    """Makes parts sums over the ranks that share their matrices: one all-reduce a group of ranks, of all of them.

    Each ``next`` waits for one group and begins with another.
    """
    # by mesh dimensions, as all ranks find them: sums of sums would come out wrong in any other order
    groups = {ranks: group for place in places for ranks, group in layouts[place].groups.items()}
    for ranks, group in groups.items():
        chosen = [place for place in places if ranks in layouts[place].groups]
        # where they lay and will lie again: until then the flat copy is all that is held
        like = [torch.empty(0, dtype=parts[place].dtype, device=parts[place].device) for place in chosen]
        shapes = [parts[place].shape for place in chosen]
        flat = torch.cat([parts.pop(place).to(layouts[place].device).flatten() for place in chosen])
        work = dist.all_reduce(flat, group=group, async_op=True)
        yield
        work.wait()
        for place, summed, shape, target in zip(chosen, flat.split([s.numel() for s in shapes]), shapes, like):
            parts[place] = summed.view(shape).to(target)
