"""Layout of one tensor over a mesh of ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# a rank's shard of a tensor: (start, stop) in each dimension
Block = tuple[tuple[int, int], ...]


def local(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a parameter or gradient, by reference; a plain tensor is returned as it is."""
    if not hasattr(tensor, "to_local"):
        return tensor
    with torch.no_grad():
        shard = tensor.to_local()
    # a collective may be under way, as tensor parallelism leaves it
    return shard.wait() if hasattr(shard, "wait") else shard


def local_gradient(name: str, parameter: Tensor) -> Tensor | None:
    """Return this rank's shard of a parameter's gradient, by reference; None where it has none.

    Partial sums, as a sharded input leaves them to a replicated weight, are first redistributed to the parameter's
    placement. Expanded ones, of which one element stands for several, are written in full. Raises RuntimeError, by the
    parameter's name, for any other placement.
    """
    gradient = parameter.grad
    if gradient is None:
        return None
    placed, expected = getattr(gradient, "placements", None), getattr(parameter, "placements", None)
    if placed != expected:
        if not (placed and expected and all(p.is_partial() or p == e for p, e in zip(placed, expected))):
            raise RuntimeError(
                f"the gradient of {name} is placed as {placed} and the parameter as {expected}: redistribute it before "
                "optimizer.step()"
            )
        gradient = parameter.grad = gradient.redistribute(placements=expected)  # type: ignore[attr-defined]
    elif placed is None and gradient.layout == torch.strided and 0 in gradient.stride():
        gradient = parameter.grad = gradient.contiguous()
    return local(gradient)


@dataclass(frozen=True, eq=False)
class Layout:
    """A tensor on a DeviceMesh, placed as a DTensor; without a mesh it is this process's alone, and whole."""

    shape: torch.Size
    mesh: Any = None
    placements: tuple[Any, ...] = ()

    # True where a rank's shard is an interval of the elements, row by row
    flat: ClassVar[bool] = False

    # this rank's shard of a parameter that has this layout, and of its gradient
    local = staticmethod(local)
    gradient = staticmethod(local_gradient)

    def __deepcopy__(self, memo: dict[int, Any]) -> Layout:
        # process groups are not copied with a model
        return self

    def mesh_dims(self, dim: int | None = None) -> list[int]:
        """Return the mesh dimensions, of two or more ranks, that shard a dimension of the tensor, by default any."""
        dims = range(len(self.shape)) if dim is None else [dim % len(self.shape)]
        return [i for i, p in enumerate(self.placements) if sharded_dim(p) in dims and self.mesh.size(i) > 1]

    @cached_property
    def shards_matrices(self) -> bool:
        """True where a matrix, ``[.., d1, d2]``, is sharded over ranks."""
        return bool(self.mesh_dims(-2) or self.mesh_dims(-1))

    @cached_property
    def shards_batch(self) -> bool:
        """True where ranks hold different matrices of one tensor, as experts."""
        return set(self.mesh_dims()) != set(self.mesh_dims(-2) + self.mesh_dims(-1))

    @cached_property
    def sum_groups(self) -> dict[tuple[int, ...], ProcessGroup]:
        """Groups that together sum over the shards of a matrix, one a mesh dimension, by their ranks."""
        groups = [self.mesh.get_group(i) for i in sorted(self.mesh_dims(-2) + self.mesh_dims(-1))]
        return {tuple(sorted(dist.get_process_group_ranks(group))): group for group in groups}

    @cached_property
    def ranks(self) -> list[int]:
        """All ranks of the mesh, in its order."""
        return [] if self.mesh is None else self.mesh.mesh.flatten().tolist()

    @cached_property
    def index(self) -> int:
        """Index of this rank in ``ranks``."""
        return self.ranks.index(dist.get_rank()) if self.ranks else 0

    @cached_property
    def group(self) -> ProcessGroup:
        """Process group of all ranks of the mesh."""
        if self.mesh.ndim == 1:
            return self.mesh.get_group(0)
        # a mesh of several dimensions has a group for each of them alone
        everyone = dist.distributed_c10d._get_default_group()
        ranks = tuple(sorted(self.ranks))
        if ranks == tuple(range(dist.get_world_size())):
            return everyone
        made = _groups.setdefault(everyone, {})
        if ranks not in made:
            # with the user's timeout: torch's default is half an hour
            timeout = everyone._get_backend(torch.device(self.mesh.device_type)).options._timeout
            made[ranks] = dist.new_group(list(ranks), timeout=timeout, use_local_synchronization=True)
        return made[ranks]

    @cached_property
    def device(self) -> torch.device:
        """Device of the tensors that this mesh communicates."""
        # gloo takes host memory
        kind = "cpu" if dist.get_backend(self.group) == "gloo" else self.mesh.device_type
        return (
            torch.device(kind) if kind == "cpu" else torch.device(kind, torch.get_device_module(kind).current_device())
        )

    def block(self, index: int | None = None) -> Block:
        """Return the shard of the rank at an index of the mesh, by default of this rank.

        Shards are those of ``torch.chunk``: 5 rows on 3 ranks are 2, 2, 1, and 2 rows are 1, 1, 0.
        """
        bounds = [(0, size) for size in self.shape]
        sides = [self.mesh.size(i) for i in range(len(self.placements))]
        coordinate = np.unravel_index(self.index if index is None else index, sides)
        # fully_shard shards what tensor parallelism has sharded already, though it comes first in the mesh
        for i in sorted(range(len(sides)), key=lambda i: split_factor(self.placements[i])):
            dim = sharded_dim(self.placements[i])
            if dim is not None:
                start, stop = bounds[dim]
                each = -(-(stop - start) // sides[i])
                low = min(start + int(coordinate[i]) * each, stop)
                bounds[dim] = low, min(low + each, stop)
        return tuple(bounds)

    @cached_property
    def holders(self) -> dict[Block, int]:
        """Each block that is not empty, with the first index of the mesh that holds it."""
        found: dict[Block, int] = {}
        for index in range(len(self.ranks)):
            found.setdefault(self.block(index), index)
        return {block: index for block, index in found.items() if shape_of(block).numel()}

    @property
    def stored(self) -> torch.Size:
        """Shape of the tensor that ``block`` indexes."""
        return self.shape

    @property
    def placed(self) -> str:
        """The placement, for a message."""
        return str(self.placements)

    def whole(self, stored: Tensor) -> Tensor:
        """Return the tensor of which ``stored`` has all blocks."""
        return stored

    def pieces(self, shard: Tensor) -> Iterator[tuple[Tensor, list[int]]]:
        """Yield this rank's shard in blocks of the tensor, each with where it begins."""
        yield shard, [start for start, _ in self.block()]

    def as_matrix(self, shard: Tensor) -> Tensor:
        """Return this rank's shard as matrices ``[.., m, n]``."""
        return shard

    def from_matrix(self, matrix: Tensor) -> Tensor:
        """Return the shard that ``as_matrix`` was given, of such a matrix."""
        return matrix

    def factor(self, shape: Sequence[int], rows: bool, columns: bool, rest: int | None = None) -> Layout:
        """Return the layout of a factor ``[.., m, n]``: sharded as this tensor in batches, in rows or columns if asked.

        The other mesh dimensions shard its dimension ``rest`` where one is given, else they replicate.
        """
        from torch.distributed.tensor import Replicate, Shard

        asked = {len(self.shape) - 2: rows, len(self.shape) - 1: columns, None: True}
        other = Replicate() if rest is None else Shard(rest % len(shape))
        placements = [p if asked.get(sharded_dim(p), True) else other for p in self.placements]
        return Layout(torch.Size(shape), self.mesh, tuple(placements))


# they end with the default group
_groups: WeakKeyDictionary[ProcessGroup, dict[tuple[int, ...], ProcessGroup]] = WeakKeyDictionary()


def shape_of(block: Block) -> torch.Size:
    """Return the shape of a block."""
    return torch.Size(stop - start for start, stop in block)


def slices(block: Block) -> tuple[slice, ...]:
    """Return the block as an index."""
    return tuple(slice(*bounds) for bounds in block)


def sharded_dim(placement: Any) -> int | None:
    """Return the dimension that a placement shards."""
    return getattr(placement, "dim", None)


def split_factor(placement: Any) -> int:
    """Return the number of shards that later mesh dimensions make, first, of what a placement shards."""
    return getattr(placement, "split_factor", 1)
