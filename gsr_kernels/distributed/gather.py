"""Factors that the ranks of a weight share, made whole just before they are used."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from gsr_kernels.basis import SpectralBasis
from gsr_kernels.distributed.layout import Layout
from gsr_kernels.distributed.schemes import Scheme, factor_shapes


def gathered(parts: Iterable[tuple[Scheme, SpectralBasis, bool]]) -> Iterator[SpectralBasis]:
    """Bases with their shared factors whole where asked, each on its way while the one before it is used.

    Nothing is kept of a basis that was given. All ranks of a weight's mesh must ask for the same bases.
    """
    # the one that is about to be used: it is laid out before the next has room
    ready: list[SpectralBasis] = []
    coming: _Gather | None = None
    for scheme, basis, asked in parts:
        if coming is not None:
            ready.append(coming.arrived())
        coming = _Gather(scheme if asked else None, basis)
        if ready:
            yield ready.pop()
    if coming is not None:
        yield coming.arrived()


class _Gather:
    """One basis on its way; as it is where no scheme says how it is shared."""

    def __init__(self, scheme: Scheme | None, basis: SpectralBasis) -> None:
        self._basis, self._coming = basis, dict[str, Iterator[Tensor]]()
        if scheme is None:
            return
        layouts = scheme.factors(factor_shapes(basis.shape, basis.rank))
        for name, dim in (("U", -1), ("Vh", -2)):
            if layouts[name].cuts(dim):
                self._coming[name] = _gathering(getattr(basis, name), layouts[name], dim)
                next(self._coming[name])

    def arrived(self) -> SpectralBasis:
        """The basis, for use on the current stream."""
        whole = {name: deque(self._coming.pop(name), maxlen=1).pop() for name in [*self._coming]}
        return replace(self._basis, U=whole.get("U", self._basis.U), Vh=whole.get("Vh", self._basis.Vh))


def _gathering(part: Tensor, layout: Layout, dim: int) -> Iterator[Tensor]:
    """A tensor of which each rank has a part, in the end whole in one dimension.

    Before that each ``next`` waits for one group of ranks and begins with another, and gives what is under way.
    """
    axes = layout.cuts(dim)
    coordinate = layout.mesh.get_coordinate()
    # what is cut at each mesh dimension: the whole, then what this rank has of it
    sizes = [layout.shape[dim]]
    for i in axes:
        each = -(-sizes[-1] // layout.mesh.size(i))
        sizes.append(max(0, min(each, sizes[-1] - coordinate[i] * each)))
    held = part.movedim(dim, 0).to(layout.device)
    for i, size in zip(reversed(axes), reversed(sizes[:-1])):
        # ranks send equal lengths: what the last have less is made up, and falls off at the end
        less = -(-size // layout.mesh.size(i)) - len(held)
        sent = torch.cat([held, held.new_zeros(less, *held.shape[1:])]) if less else held.contiguous()
        held = sent.new_empty(len(sent) * layout.mesh.size(i), *sent.shape[1:])
        work = dist.all_gather_into_tensor(held, sent, group=layout.mesh.get_group(i), async_op=True)
        yield held
        work.wait()
        # both hold what was sent
        del sent, work
        held = held[:size]
    # laid out as if it had never been cut: products round alike
    yield held.movedim(0, dim).contiguous().to(part.device)
