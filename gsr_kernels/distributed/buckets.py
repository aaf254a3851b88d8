"""Sums over ranks, some bytes at a time: what is on its way travels while others are computed."""

from __future__ import annotations

from collections.abc import Sequence

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
        shapes, dtypes: of each part on this rank.
        sizes: bytes that each counts for, the same on every rank whatever it holds: all must fill their buckets alike.

    Attributes:
        buckets: the places of the parts in each; parts are to be added in this order.
    """

    def __init__(
        self,
        layouts: Sequence[Layout],
        shapes: Sequence[tuple[int, ...]],
        dtypes: Sequence[torch.dtype],
        sizes: Sequence[int],
    ) -> None:
        self._layouts, self._shapes, self._dtypes = layouts, shapes, dtypes
        self.buckets = _buckets(layouts, dtypes, sizes)
        self._of = {place: bucket for bucket, places in enumerate(self.buckets) for place in places}
        self._parts: dict[int, Tensor] = {}
        self._under_way: dict[int, _Sum] = {}

    def add(self, place: int, part: Tensor) -> None:
        """Takes a copy of a part; the last one of a bucket has it sent."""
        bucket = self._of[place]
        places = self.buckets[bucket]
        if place == places[0]:
            self._make(bucket)
        self._parts[place].copy_(part)
        if place == places[-1]:
            # in every group of ranks the buckets come in this order, whatever other groups each of its ranks is in
            for before in range(bucket):
                if before in self._under_way:
                    self._under_way[before].reach_last()
            self._under_way[bucket].begin()

    def take(self, place: int) -> Tensor:
        """The sum that a part has gone into, where the ranks communicate; once, for it is not kept.

        The bucket must be full, and the next one as well.
        """
        self._arrive(self._of[place])
        return self._parts.pop(place)

    def arrived(self) -> list[Tensor]:
        """Every sum, in the order of the layouts; all buckets must be full."""
        for bucket in range(len(self.buckets)):
            self._arrive(bucket)
        return [self._parts[place] for place in range(len(self._layouts))]

    def _make(self, bucket: int) -> None:
        places = self.buckets[bucket]
        shapes = [torch.Size(self._shapes[place]) for place in places]
        layout, counts = self._layouts[places[0]], [shape.numel() for shape in shapes]
        flat = torch.empty(sum(counts), dtype=self._dtypes[places[0]], device=layout.device)
        self._parts.update(zip(places, (part.view(shape) for part, shape in zip(flat.split(counts), shapes))))
        self._under_way[bucket] = _Sum(flat, layout)

    def _arrive(self, bucket: int) -> None:
        if bucket in self._under_way:
            self._under_way.pop(bucket).arrive()


class _Sum:
    """A tensor that is summed over one group of ranks of its layout after the other, in place."""

    def __init__(self, flat: Tensor, layout: Layout) -> None:
        # by mesh dimensions, as all ranks find them: sums of sums would come out wrong in any other order
        self._flat, self._groups = flat, [*layout.groups.values()]
        self._work: dist.Work | None = None

    def begin(self) -> None:
        """Waits for the group that it is in, and begins with another."""
        if self._work is not None:
            self._work.wait()
        self._work = dist.all_reduce(self._flat, group=self._groups.pop(0), async_op=True)

    def reach_last(self) -> None:
        """Begins with the last group."""
        while self._groups:
            self.begin()

    def arrive(self) -> None:
        """Waits for the sum."""
        self.reach_last()
        if self._work is not None:
            self._work.wait()


def _buckets(layouts: Sequence[Layout], dtypes: Sequence[torch.dtype], sizes: Sequence[int]) -> list[list[int]]:
    # of one mesh, cut alike: ranks of one need not have the weights of another
    before: dict[object, int] = {}
    found: dict[object, list[int]] = {}
    for place, (layout, dtype, size) in enumerate(zip(layouts, dtypes, sizes)):
        alike = tuple(layout.ranks), tuple(layout.groups), dtype
        found.setdefault((alike, before.get(alike, 0) // BUCKET), []).append(place)
        before[alike] = before.get(alike, 0) + size
    return list(found.values())
