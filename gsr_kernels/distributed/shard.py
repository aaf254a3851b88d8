"""Shards of bases: what one rank holds of them, and how it gathers factors that it needs whole."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gsr_kernels.basis import SpectralBasis, bit_sum, fingerprint, label
from gsr_kernels.distributed.layout import Layout
from gsr_kernels.io.bases_file import FACTORS


@dataclass(frozen=True, eq=False)
class BasisShard(SpectralBasis):
    """Rows of U, S, and columns of Vh, of a whole weight's basis; ``nbytes`` is what this rank holds of it."""

    whole: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check nothing: the factors come from a basis that was checked whole."""

    @property
    def shape(self) -> torch.Size:
        """``[.., d1, d2]`` of the whole weight."""
        return torch.Size(self.whole)

    def split(self, weight: Tensor) -> Tensor:
        """Return a rank's shard of a weight or gradient as it is: it has no heads."""
        return weight


def as_shard(
    layout: Layout, factors: Mapping[str, Tensor], fingerprint: str | None, head_dim: int | None, randomized: bool
) -> SpectralBasis:
    """Return a basis of a rank's shards of the factors; an ordinary one where matrices are whole."""
    U, S, Vh = (factors[name] for name in FACTORS)
    if layout.shards_matrices:
        return BasisShard(U, S, Vh, fingerprint, randomized=randomized, whole=layout.shape)
    return SpectralBasis(U, S, Vh, fingerprint, head_dim, randomized)


def metadata(basis: SpectralBasis) -> dict[str, Any]:
    """Return what ``as_shard`` takes beside layout and factors."""
    return {"fingerprint": basis.fingerprint, "head_dim": basis.head_dim, "randomized": basis.randomized}


def fingerprint_of_shards(shard: Tensor, layout: Layout) -> str:
    """Return ``fingerprint`` of the weight whose shards the ranks of a layout hold; all of them must call."""
    if not layout.mesh_dims():
        return fingerprint(shard)
    total = 0
    # of replicas one counts
    if layout.holders.get(layout.block()) == layout.index:
        total = sum(bit_sum(piece, starts, layout.shape) for piece, starts in layout.pieces(shard)) % 2**64
    # int64 wraps as the sum modulo 2^64 does
    total -= (total >> 63) << 64
    sums = torch.tensor(total, dtype=torch.int64, device=layout.device)
    dist.all_reduce(sums, group=layout.group)
    return label(shard.dtype, layout.shape, int(sums) % 2**64)


def gathered(shards: Iterable[tuple[SpectralBasis, Mapping[str, Layout] | None]]) -> Iterator[SpectralBasis]:
    """Yield bases with their sharded factors whole, each on its way while the one before it is used.

    A basis without layouts of its factors is yielded as it is. All ranks of a mesh must ask for the same bases.
    """
    # the one that is about to be used: it is made contiguous before the next has room
    ready: list[SpectralBasis] = []
    wait: Callable[[], SpectralBasis] | None = None
    for basis, layouts in shards:
        if wait is not None:
            ready.append(wait())
        wait = _started(basis, layouts or {})
        if ready:
            yield ready.pop()
    if wait is not None:
        yield wait()


def _started(basis: SpectralBasis, layouts: Mapping[str, Layout]) -> Callable[[], SpectralBasis]:
    """Send a basis on its way; return what waits for it, for use on the current stream."""
    coming: dict[str, Iterator[Tensor]] = {}
    for name, dim in (("U", -1), ("Vh", -2)):
        if name in layouts and layouts[name].mesh_dims(dim):
            coming[name] = _gathering(getattr(basis, name), layouts[name], dim)
            next(coming[name])

    def wait() -> SpectralBasis:
        whole: dict[str, Any] = {name: deque(coming.pop(name), maxlen=1).pop() for name in [*coming]}
        return replace(basis, **whole)

    return wait


def _gathering(shard: Tensor, layout: Layout, dim: int) -> Iterator[Tensor]:
    """Yield what is under way of a tensor, group of ranks by group, and last the tensor whole in one dimension."""
    axes = layout.mesh_dims(dim)
    coordinate = layout.mesh.get_coordinate()
    # what each mesh dimension shards: the whole, then what this rank has of it
    sizes = [layout.shape[dim]]
    for i in axes:
        each = -(-sizes[-1] // layout.mesh.size(i))
        sizes.append(max(0, min(each, sizes[-1] - coordinate[i] * each)))
    held = shard.movedim(dim, 0).to(layout.device)
    for i, size in zip(reversed(axes), reversed(sizes[:-1])):
        # ranks send equal lengths: what the last have less is padded, and falls off at the end
        less = -(-size // layout.mesh.size(i)) - len(held)
        sent = torch.cat([held, held.new_zeros(less, *held.shape[1:])]) if less else held.contiguous()
        held = sent.new_empty(len(sent) * layout.mesh.size(i), *sent.shape[1:])
        work = dist.all_gather_into_tensor(held, sent, group=layout.mesh.get_group(i), async_op=True)
        yield held
        work.wait()
        # both hold what was sent
        del sent, work
        held = held[:size]
    # with the strides of a factor that was never sharded: products round alike
    yield held.movedim(0, dim).contiguous().to(shard.device)
