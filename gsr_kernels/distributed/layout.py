"""Where the pieces of one tensor lie on a mesh of ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

T = TypeVar("T")

# what a rank holds of a tensor: (start, stop) in each dimension
Block = tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class Layout:
    """A tensor ``shape`` on a DeviceMesh, with a placement for each of the mesh's dimensions, as DTensor has them.

    In one process there is no mesh, and the tensor is whole.
    """

    shape: torch.Size
    mesh: Any = None
    placements: tuple[Any, ...] = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Layout:
        # groups of processes are not copied with a model
        return self

    def cuts(self, dim: int | None = None) -> list[int]:
        """The mesh dimensions, of two or more ranks, over which the tensor's dimension is cut, or any of them."""
        dims = range(len(self.shape)) if dim is None else [dim % len(self.shape)]
        return [i for i, p in enumerate(self.placements) if cut_dim(p) in dims and self.mesh.size(i) > 1]

    @property
    def matrices_cut(self) -> bool:
        """Whether a matrix, ``[.., d1, d2]``, lies on several ranks."""
        return bool(self.cuts(-2) or self.cuts(-1))

    @property
    def dealt(self) -> bool:
        """Whether ranks hold different matrices of one tensor, as experts."""
        return set(self.cuts()) != set(self.cuts(-2) + self.cuts(-1))

    @cached_property
    def groups(self) -> dict[tuple[int, ...], ProcessGroup]:
        """Those over which a sum makes a matrix's pieces whole, one a mesh dimension, by their ranks."""
        groups = [self.mesh.get_group(i) for i in sorted(self.cuts(-2) + self.cuts(-1))]
        return {tuple(sorted(dist.get_process_group_ranks(group))): group for group in groups}

    @cached_property
    def ranks(self) -> list[int]:
        """Every rank of the mesh, in its order."""
        return [] if self.mesh is None else self.mesh.mesh.flatten().tolist()

    @cached_property
    def place(self) -> int:
        """This rank's place in that order."""
        return self.ranks.index(dist.get_rank()) if self.ranks else 0

    @property
    def team(self) -> ProcessGroup:
        """The group of all ranks of the mesh."""
        if self.mesh.ndim == 1:
            return self.mesh.get_group(0)
        # a mesh of several dimensions has groups along each of them alone
        everyone = dist.distributed_c10d._get_default_group()
        ranks = tuple(sorted(self.ranks))
        if ranks == tuple(range(dist.get_world_size())):
            return everyone
        made = _teams.setdefault(everyone, {})
        if ranks not in made:
            # as patient as the user's: torch's default is half an hour
            patience = everyone._get_backend(torch.device(self.mesh.device_type)).options._timeout
            made[ranks] = dist.new_group(list(ranks), timeout=patience, use_local_synchronization=True)
        return made[ranks]

    @property
    def device(self) -> torch.device:
        """Where this mesh communicates."""
        # gloo carries what lies in host memory
        kind = "cpu" if dist.get_backend(self.team) == "gloo" else self.mesh.device_type
        return (
            torch.device(kind) if kind == "cpu" else torch.device(kind, torch.get_device_module(kind).current_device())
        )

    def block(self, place: int | None = None) -> Block:
        """What the rank at a place of the mesh holds, this rank by default.

        Pieces are cut as ``torch.chunk`` cuts: 5 rows on 3 ranks are 2, 2, 1, and 2 rows are 1, 1, 0.
        """
        bounds = [(0, size) for size in self.shape]
        rest = self.place if place is None else place
        coordinate = [0] * len(self.placements)
        for i in reversed(range(len(coordinate))):
            rest, coordinate[i] = divmod(rest, self.mesh.size(i))
        # fully_shard cuts what tensor parallelism has cut already, though it comes first in the mesh
        for i in sorted(range(len(coordinate)), key=lambda i: split_factor(self.placements[i])):
            dim = cut_dim(self.placements[i])
            if dim is not None:
                start, stop = bounds[dim]
                each = -(-(stop - start) // self.mesh.size(i))
                low = min(start + coordinate[i] * each, stop)
                bounds[dim] = low, min(low + each, stop)
        return tuple(bounds)

    def holders(self) -> dict[Block, int]:
        """Each block that is not empty, and the first place that holds it."""
        found: dict[Block, int] = {}
        for place in range(len(self.ranks)):
            found.setdefault(self.block(place), place)
        return {block: place for block, place in found.items() if count(block)}

    def part(self, shape: Sequence[int], rows: bool, columns: bool, rest: int | None = None) -> Layout:
        """The layout of a factor ``[.., m, n]`` cut as this tensor is, in its rows or columns only where asked.

        What would be whole on the ranks of the other cuts they share along its dimension ``rest``, where one is given.
        """
        from torch.distributed.tensor import Replicate, Shard

        asked = {len(self.shape) - 2: rows, len(self.shape) - 1: columns, None: True}
        other = Replicate() if rest is None else Shard(rest % len(shape))
        placements = [p if asked.get(cut_dim(p), True) else other for p in self.placements]
        return Layout(torch.Size(shape), self.mesh, tuple(placements))


# they end with the default group
_teams: WeakKeyDictionary[ProcessGroup, dict[tuple[int, ...], ProcessGroup]] = WeakKeyDictionary()


def sides(block: Block) -> torch.Size:
    """The shape of a block."""
    return torch.Size(stop - start for start, stop in block)


def count(block: Block) -> int:
    """How many numbers it has."""
    return sides(block).numel()


def at(block: Block) -> tuple[slice, ...]:
    """The block as an index."""
    return tuple(slice(*bounds) for bounds in block)


def cut_dim(placement: Any) -> int | None:
    """The dimension that a placement cuts."""
    return getattr(placement, "dim", None)


def split_factor(placement: Any) -> int:
    """Into how many pieces later mesh dimensions have cut, first, what a placement cuts."""
    return getattr(placement, "split_factor", 1)


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a parameter or gradient, by reference; the tensor itself where it is no DTensor."""
    if not hasattr(tensor, "to_local"):
        return tensor
    with torch.no_grad():
        held = tensor.to_local()
    # a collective may be under way, as tensor parallelism leaves it
    return held.wait() if hasattr(held, "wait") else held


def teams(layouts: Sequence[Layout]) -> list[Layout]:
    """A layout of each group of ranks."""
    return list({tuple(sorted(one.ranks)): one for one in layouts if one.mesh is not None}.values())


def common(layouts: Sequence[Layout]) -> Layout:
    """One whose ranks are all that hold any of these; ValueError where groups of ranks lie side by side."""
    widest = max(layouts, key=lambda layout: len(layout.ranks))
    apart = [one for one in teams(layouts) if not set(one.ranks) <= set(widest.ranks)]
    if apart:
        raise ValueError(
            f"bases: some weights lie on the ranks {sorted(apart[0].ranks)} and others on {sorted(widest.ranks)}, and "
            "one directory takes them from a group that holds all; place them on one mesh, or leave bases= out"
        )
    return widest


def agreed(flag: bool, layouts: Sequence[Layout]) -> bool:
    """Whether the flag is set on every rank of these layouts; all of them must ask."""
    # the smaller first: what ranks within a larger group agreed on, that group then hears
    for layout in sorted(teams(layouts), key=lambda layout: len(layout.ranks)):
        votes = torch.tensor(int(flag), dtype=torch.int32, device=layout.device)
        dist.all_reduce(votes, dist.ReduceOp.MIN, group=layout.team)
        flag = bool(votes.item())
    return flag


def alike(told: object, layouts: Sequence[Layout]) -> bool:
    """Whether all ranks of these layouts tell the same; all of them must ask."""
    same = True
    # in one order on all ranks, since groups may overlap
    for layout in sorted(teams(layouts), key=lambda layout: sorted(layout.ranks)):
        each: list[object] = [None] * len(layout.ranks)
        dist.all_gather_object(each, told, group=layout.team)
        same = same and all(one == told for one in each)
    return agreed(same, layouts)


def leads(layouts: Sequence[Layout]) -> bool:
    """Whether this rank is the one that speaks and writes for all."""
    return all(layout.place == 0 for layout in layouts)


def led(act: Callable[[], None], layouts: Sequence[Layout]) -> None:
    """Has the first rank act while the others wait; where it fails all of them raise."""
    together(act if leads(layouts) else lambda: None, layouts)


def together(act: Callable[[], T], layouts: Sequence[Layout]) -> T:
    """What ``act``, which exchanges nothing, returns here; all ranks of these layouts must ask.

    Where it fails on one, that rank raises what it met and all others RuntimeError, so that none waits for it.
    """
    problem: Exception | None = None
    try:
        found = act()
    except Exception as error:
        problem = error
    if not agreed(problem is None, layouts):
        raise problem or RuntimeError("another rank has failed in what all of them do together; it says why")
    return found
