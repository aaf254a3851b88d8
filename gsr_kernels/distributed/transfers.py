"""Messages between the ranks of a mesh about weights that single ranks decompose."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gsr_kernels.basis import SpectralBasis
from gsr_kernels.distributed.layout import Layout, shape_of, slices
from gsr_kernels.distributed.shard import metadata
from gsr_kernels.io.bases_file import FACTORS

# of a basis: the shape and dtype of each factor, and its metadata; empty where a rank has none
Description = dict[str, Any]


def decompose_and_describe(
    mesh: Layout, decompose: Callable[[], SpectralBasis | None]
) -> tuple[dict[str, Tensor], list[Description]]:
    """Return the factors that this rank decomposes, and the description of each rank's basis, in the mesh's order.

    Raises ValueError, on every rank, where one cannot decompose its weight; RuntimeError where its memory is too small.
    """
    factors: dict[str, Tensor] = {}
    description = Description()
    try:
        basis = decompose()
        if basis is not None:
            factors = {factor: getattr(basis, factor) for factor in FACTORS}
            description = {factor: (tensor.shape, tensor.dtype) for factor, tensor in factors.items()}
            description["metadata"] = metadata(basis)
    except Exception as error:
        description = {"error": str(error), "kind": ValueError if isinstance(error, ValueError) else RuntimeError}
    gathered: list[Any] = [None] * len(mesh.ranks)
    dist.all_gather_object(gathered, (mesh.index, description), group=mesh.group)
    by_index = dict(gathered)
    for one in by_index.values():
        if "error" in one:
            raise one["kind"](one["error"])
    return factors, [by_index[index] for index in range(len(gathered))]


def gather(layouts: Sequence[Layout], shards: Sequence[Tensor]) -> Tensor | None:
    """Return the i-th weight whole on the i-th rank, None on others; beside it a rank holds one shard on its way."""
    mesh = layouts[0]
    whole = None
    if mesh.index < len(layouts):
        layout, shard = layouts[mesh.index], shards[mesh.index]
        whole = torch.empty(layout.stored, dtype=shard.dtype, device=mesh.device)
        whole[slices(layout.block())] = shard.to(mesh.device)
    for before, after in _partners(mesh):
        wanted = before < len(layouts) and _lacks(layouts[before], before, mesh.index)
        target = arriving = None
        if whole is not None and _lacks(layout, mesh.index, after):
            target = whole[slices(layout.block(after))]
            # rows arrive where they belong, columns beside it
            arriving = target if target.is_contiguous() else torch.empty_like(target).contiguous()
        exchange(mesh, [(before, shards[before])] if wanted else [], [] if arriving is None else [(after, arriving)])
        if target is not None and arriving is not None and arriving is not target:
            target.copy_(arriving)
    return None if whole is None else layout.whole(whole)


def _lacks(layout: Layout, index: int, other: int) -> bool:
    """Return whether the rank at an index lacks the block that another holds before all ranks."""
    block = layout.block(other)
    return block != layout.block(index) and layout.holders.get(block) == other


def scatter(layouts: Sequence[Layout], own: Tensor | None, dtypes: Sequence[torch.dtype]) -> list[Tensor]:
    """Return this rank's shards of the i-th rank's tensor ``own``, of the i-th layout, one at a time on its way."""
    mesh = layouts[0]
    shards = []
    for index, (layout, dtype) in enumerate(zip(layouts, dtypes)):
        if own is None or index != mesh.index:
            shards.append(torch.empty(shape_of(layout.block()), dtype=dtype, device=mesh.device))
        else:
            shard = own[slices(layout.block())]
            # a view would keep the rest
            shards.append(shard if shard.shape == own.shape else shard.clone())
    for before, after in _partners(mesh):
        sent = [] if own is None else [(after, own[slices(layouts[mesh.index].block(after))])]
        exchange(mesh, sent, [(before, shards[before])] if before < len(layouts) else [])
    return shards


def exchange(mesh: Layout, sent: Iterable[tuple[int, Tensor]], received: Iterable[tuple[int, Tensor]]) -> None:
    """Send tensors to the ranks at these indices of a mesh and fill contiguous ones from others, all at once."""
    tasks: list[tuple[Any, int, Tensor]] = [
        (dist.isend, index, tensor.to(mesh.device).contiguous()) for index, tensor in sent
    ]
    tasks += [(dist.irecv, index, tensor) for index, tensor in received]
    # an empty one is not sent
    pending = [dist.P2POp(of, one, mesh.ranks[index], group=mesh.group) for of, index, one in tasks if one.numel()]
    for work in dist.batch_isend_irecv(pending) if pending else []:
        work.wait()


def _partners(mesh: Layout) -> list[tuple[int, int]]:
    """Return the indices as far before this rank's as the other is after it, nearest first: each rank meets all."""
    count = len(mesh.ranks)
    return [((mesh.index - far) % count, (mesh.index + far) % count) for far in range(1, count)]
