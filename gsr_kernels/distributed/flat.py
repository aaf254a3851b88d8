"""Weights of engines that flatten many into one buffer, of which each rank holds an interval."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate, chain, pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from gsr_kernels.distributed.layout import Block, Layout

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True, eq=False)
class ListedLayout(Layout):
    """A tensor of which each rank holds a listed block, of any rows and columns; blocks may overlap."""

    blocks: tuple[Block, ...] = ()

    def mesh_dims(self, dim: int | None = None) -> list[int]:
        """Return the one mesh dimension where ``dim`` is None or the rows."""
        rows = dim is None or dim % len(self.shape) == len(self.shape) - 2
        return [0] if rows and len(self.blocks) > 1 else []

    def block(self, index: int | None = None) -> Block:
        """Return the block of the rank at an index, by default of this one."""
        return self.blocks[self.index if index is None else index]


@dataclass(frozen=True, eq=False)
class FlatLayout(ListedLayout):
    """A weight of which each rank holds an interval of its elements, row by row, in a buffer beside other weights.

    A block is the interval, ``((start, stop),)``. It may be empty, and start and end inside one row. Where tensor
    parallelism has sharded columns the parts follow one another, each row by row, and no interval is in two of them.
    """

    # where this rank's interval begins in its buffer
    offset: int = 0
    # in how many parts the columns are
    parts: int = 1

    flat: ClassVar[bool] = True

    @property
    def stored(self) -> torch.Size:
        return torch.Size((self.shape.numel(),))

    @property
    def placed(self) -> str:
        return "an interval of its elements on each"

    def local(self, tensor: Tensor) -> Tensor:
        ((start, stop),) = self.block()
        part = tensor.detach()[self.offset : self.offset + stop - start]
        # of one rank it is the whole weight
        return part if self.shards_matrices else part.view(self.shape)

    def gradient(self, name: str, parameter: Tensor) -> Tensor | None:
        ((start, stop),) = self.block()
        if parameter.grad is not None:
            return self.local(parameter.grad)
        return None if start < stop else parameter.new_empty(0)

    def whole(self, stored: Tensor) -> Tensor:
        return stored.view(self.parts, -1, self._columns).movedim(0, -2).reshape(self.shape)

    def pieces(self, shard: Tensor) -> Iterator[tuple[Tensor, list[int]]]:
        """Yield the interval as the end of a row, whole rows and the beginning of one, each with where it begins."""
        (row, _), (column, _) = self._touched(self.block())
        before, size = self._before(), self._columns
        head = min(-before % size, len(shard))
        body = len(shard) - (len(shard) - head) % size
        for part, start in ((shard[:head], before), (shard[head:body], 0), (shard[body:], 0)):
            if len(part):
                rows = part.view(-1, min(size, len(part)))
                yield rows, [row, column + start]
                row += len(rows)

    def as_matrix(self, shard: Tensor) -> Tensor:
        """Return the rows that the interval touches, with zeros for what it lacks of the first and last of them."""
        ((first, last), _), before = self._touched(self.block()), self._before()
        if len(shard) < (last - first) * self._columns:
            padded = shard.new_zeros((last - first) * self._columns)
            padded[before : before + len(shard)] = shard
            shard = padded
        return shard.view(last - first, self._columns)

    def from_matrix(self, matrix: Tensor) -> Tensor:
        ((start, stop),), before = self.block(), self._before()
        return matrix.reshape(-1)[before : before + stop - start]

    def factor(self, shape: Sequence[int], rows: bool, columns: bool, rest: int | None = None) -> Layout:
        """Return the layout of a factor: U's rows and Vh's columns that a rank touches.

        Vectors are on every rank. Shards of ``rest`` are equal.
        """
        from torch.distributed.tensor import Replicate, Shard

        if self.mesh is None:
            return Layout(torch.Size(shape))
        if rows or (columns and rest is None):
            touched = map(self._touched, self.blocks)
            blocks = tuple((one, (0, shape[-1])) if rows else ((0, shape[0]), other) for one, other in touched)
            return ListedLayout(torch.Size(shape), self.mesh, blocks=blocks)
        return Layout(torch.Size(shape), self.mesh, (Replicate() if rest is None else Shard(rest % len(shape)),))

    @property
    def _columns(self) -> int:
        return self.shape[-1] // self.parts

    def _touched(self, block: Block) -> Block:
        """Return the rows and columns of the weight in which an interval lies."""
        ((start, stop),), size = block, self._columns
        if start == stop:
            return (0, 0), (0, 0)
        part, first = divmod(start, self.shape[-2] * size)
        return (first // size, -(-(first + stop - start) // size)), (part * size, (part + 1) * size)

    def _before(self) -> int:
        """Return the elements of the first row that come before this rank's."""
        ((start, stop),) = self.block()
        return start % self._columns if start < stop else 0


def flat_layout(shape: torch.Size, mesh: Any, first: int, bounds: Sequence[int], index: int, begins: int) -> FlatLayout:
    """Return the layout of a weight that begins at element ``first`` of a space that ranks share.

    Args:
        shape: of the whole weight.
        mesh: of one dimension, None for one rank.
        bounds: rank i of the mesh has the elements from ``bounds[i]`` to ``bounds[i + 1]``.
        index: this rank's.
        begins: where in this rank's buffer its part of that space begins.
    """
    last = first + shape.numel()
    intervals = [
        (min(max(start, first), last) - first, min(max(stop, first), last) - first) for start, stop in pairwise(bounds)
    ]
    offset = begins + max(first - bounds[index], 0)
    return FlatLayout(shape, mesh, blocks=tuple((one,) for one in intervals), offset=offset)


@dataclass(frozen=True, eq=False)
class FlatShard:
    """A weight in a buffer that an optimizer steps; ``whole`` stands for it, a parameter of its shape on "meta"."""

    name: str
    module: nn.Module
    whole: nn.Parameter
    buffer: Tensor
    layout: FlatLayout
    trained: bool = True


def flat_shard(name: str, module: nn.Module, parameter: Tensor, buffer: Tensor, layout: FlatLayout) -> FlatShard:
    """Return the shard of a parameter; ``parameter`` says whether it is trained."""
    empty = torch.empty(layout.shape, dtype=buffer.dtype, device="meta")
    return FlatShard(name, module, nn.Parameter(empty, parameter.requires_grad), buffer, layout)


@dataclass(frozen=True, eq=False)
class FlatModel:
    """A model of which an engine has flattened parameters: those, and ``replaced``, what the modules hold for them."""

    module: nn.Module
    shards: Sequence[FlatShard]
    replaced: Set[Tensor]

    def parameters(self) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
        """Yield every parameter in its whole shape, after its name and the module that holds it."""
        yield from ((shard.name, shard.module, shard.whole) for shard in self.shards)
        for name, module, parameter in held_parameters(self.module):
            if parameter not in self.replaced:
                yield name, module, parameter


# a parameter, the buffer that its shard is in, and how
Placed = tuple[nn.Parameter, Tensor, FlatLayout]


def flat_engine(module: nn.Module, placed: Iterable[Placed]) -> FlatModel:
    """Return the model of an engine that has flattened these parameters of a module."""
    names = {parameter: (name, holder) for name, holder, parameter in reversed([*held_parameters(module)])}
    flattened = list(placed)
    shards = [flat_shard(*names[parameter], parameter, buffer, layout) for parameter, buffer, layout in flattened]
    return FlatModel(module, shards, {parameter for parameter, _, _ in flattened})


def held_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    """Yield every parameter of a model after its name and the module that holds it; tied ones as often as named."""
    for prefix, module in model.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            yield f"{prefix}.{own}" if prefix else own, module, parameter


def flat_model(model: object, held: Set[Tensor]) -> FlatModel | None:
    """Return a model of flat shards as it is, and FSDP1's as one; None for any other.

    Raises ValueError for settings of FSDP1 that are not supported.
    """
    if not isinstance(model, nn.Module):
        return model if isinstance(model, FlatModel) else None
    wrapped = [module for module in model.modules() if is_fsdp1(module)]
    shards = list(chain(*(_of_fsdp1(model, module, held) for module in wrapped)))
    flattened = {one for module in wrapped for one in module.parameters()}
    return FlatModel(model, shards, flattened & {shard.buffer for shard in shards}) if wrapped else None


def _of_fsdp1(model: nn.Module, wrapped: Any, held: Set[Tensor]) -> Iterator[FlatShard]:
    """Yield the shards of what one module of FullyShardedDataParallel has flattened."""
    handle = wrapped._handle
    if handle is None:
        return
    if not handle.uses_sharded_strategy or any(handle.flat_param._param_extensions):
        raise ValueError(
            "model: FullyShardedDataParallel (FSDP1) with NO_SHARD, or over tensor parallelism, is not supported: use "
            "DistributedDataParallel for the one, fully_shard (FSDP2) for the other"
        )
    prefixes = {module: f"{prefix}." if prefix else "" for prefix, module in model.named_modules()}
    flat, mesh = handle.flat_param, mesh_of(handle.process_group, wrapped.compute_device.type)
    bounds = [index * flat._sharded_size[0] for index in range(handle.world_size + 1)]
    starts = [0, *accumulate(flat._numels_with_padding)]
    firsts = [first for first, padding in zip(starts, flat._is_padding_mask) if not padding]
    # with use_orig_params=True the optimizer has a parameter for each, of what is on this rank
    own = flat._params or [flat] * len(firsts)
    for first, shape, (name, module, _), parameter in zip(firsts, flat._shapes, flat._param_infos, own):
        layout = flat_layout(shape, mesh, first, bounds, handle.rank, 0)
        layout = layout if parameter is flat else replace(layout, offset=0)
        shard = flat_shard(f"{prefixes[module]}{name}", module, parameter, parameter, layout)
        yield replace(shard, trained=parameter in held)


@cache
def mesh_of(group: ProcessGroup, device: str) -> DeviceMesh | None:
    """Return a mesh of the ranks of a group, None for one rank."""
    from torch.distributed.device_mesh import DeviceMesh

    return DeviceMesh.from_group(group, device) if group.size() > 1 else None


def is_fsdp1(module: nn.Module) -> bool:
    """Return True for a module that FullyShardedDataParallel has wrapped."""
    return any(kind.__name__ == "FullyShardedDataParallel" for kind in type(module).__mro__)
