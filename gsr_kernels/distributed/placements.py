"""Placements of a model's parameters: read, refused and advised."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gsr_kernels.distributed.agreement import equal_on_all_ranks
from gsr_kernels.distributed.flat import FlatShard
from gsr_kernels.distributed.layout import Layout, local, sharded_dim, split_factor
from gsr_kernels.distributed.schemes import Core, LongSide
from gsr_kernels.messages import some

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import Shard

    from gsr_kernels.weight import Weight


def read_layouts(
    model: object, parameters: Mapping[str, Tensor], shards: Mapping[Tensor, FlatShard]
) -> dict[str, Layout]:
    """Return the layout of each parameter; ValueError, by its name, for placements that are not supported.

    ``shards`` are those that some of the parameters stand for.
    """
    replicas = _replicas(model)
    layouts: dict[str, Layout] = {}
    for name, parameter in parameters.items():
        if parameter in shards:
            layouts[name] = shards[parameter].layout
        elif hasattr(parameter, "placements"):
            layouts[name] = _read(name, parameter)
        else:
            layouts[name] = Layout(parameter.shape, *replicas)
    return layouts


def check_same_parameters(model: object, held: set[Tensor]) -> None:
    """Raise ValueError, on all ranks, where the optimizers of DDP's replicas hold different parameters."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        names = [name for name, parameter in model.named_parameters() if parameter in held]
        layout = Layout(torch.Size(), *_replicas(model))
        if not equal_on_all_ranks(names, [layout]):
            raise ValueError(
                f"optimizer: the ranks {layout.ranks} hold different parameters in theirs, this one {len(names)} "
                f"({some(names)}), as inside ZeroRedundancyOptimizer: give attach() the outer optimizer, or shard by "
                "fully_shard"
            )


def _replicas(model: object) -> tuple[Any, ...]:
    """Return the mesh of DDP's replicas and its placement; empty for other models."""
    if not isinstance(model, nn.parallel.DistributedDataParallel):
        return ()
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import Replicate

    return DeviceMesh.from_group(model.process_group, model.device_type), (Replicate(),)


def _read(name: str, parameter: Tensor) -> Layout:
    mesh, placements = parameter.device_mesh, tuple(parameter.placements)  # type: ignore[attr-defined]
    for i, placement in enumerate(placements):
        dim, splits = sharded_dim(placement), split_factor(placement)
        if dim is None and not placement.is_replicate():
            raise ValueError(f"{name} is placed as {placement}: redistribute it to Shard or Replicate before attach()")
        # what fully_shard makes of a tensor that later mesh dimensions shard; alone it gives a rank several runs
        later = prod(mesh.size(j) for j in range(i + 1, mesh.ndim) if sharded_dim(placements[j]) == dim)
        if splits not in (1, later):
            raise ValueError(
                f"{name} is placed as {placement!r}, which gives each rank {splits} separate runs of dimension {dim}, "
                "as tensor parallelism places packed experts: redistribute it to Shard, or leave it out of targets="
            )
    return Layout(parameter.shape, mesh, placements)


def shard_placement_fn(parameter: nn.Parameter, mesh: DeviceMesh | None = None) -> Shard | None:
    """Shard matrices along their short side, where "drop" is free of traffic: ``fully_shard(shard_placement_fn=…)``.

    The price is memory: every rank then holds the long factor of the basis whole. None leaves fully_shard its own
    choice, the first dimension. It is returned where that is the short side, where the ranks do not divide the second,
    and where tensor parallelism has sharded the long side. Experts get it too: they are then sharded into whole
    matrices.

    Args:
        mesh: that of fully_shard, by ``functools.partial(shard_placement_fn, mesh=mesh)``; of two dimensions (HSDP)
            the second shards. None: all ranks together, safe on any mesh.
    """
    from torch.distributed.tensor import Shard

    if parameter.ndim != 2:
        return None
    d1, d2 = parameter.shape
    # tensor parallelism may have sharded it already
    rows, columns = local(parameter).shape
    ranks = dist.get_world_size() if mesh is None else mesh.size(mesh.ndim - 1)
    return Shard(1) if d1 > d2 and rows == d1 and columns % ranks == 0 else None


def advise(weights: Sequence[Weight]) -> None:
    """Warn where "drop" sums more than a diagonal and sharding the other side would not: what it saves and costs."""
    flat = [weight for weight in weights if weight.scheme.layout.flat and isinstance(weight.scheme, Core)]
    if flat:
        now, free = _summed(flat)
        warnings.warn(
            f"gsr_kernels: {len(flat)} weights ({some([weight.name for weight in flat])}) are in flat shards, where "
            f'"drop" sums {now:,} bytes a step; out_of_span="keep" sums {free:,}',
            stacklevel=3,
        )
    # with shard_bases the other side would gather the long factor, twice
    costly = [weight for weight in weights if isinstance(weight.scheme, LongSide) and not weight.scheme.gathers]
    if not costly:
        return
    now, free = _summed(costly)
    more = kept = 0.0
    for weight in costly:
        layout, basis = weight.scheme.layout, weight.basis
        ranks = prod(layout.mesh.size(i) for i in layout.mesh_dims())
        # the long factor whole and the short one sharded, instead of the other way round
        longer = basis.S.numel() * abs(layout.shape[-2] - layout.shape[-1]) * basis.U.element_size()
        more += longer * (1 - 1 / ranks)
        # Uᵀ G, in the dtype of S, as products with float32 bases are
        kept += basis.S.nbytes * min(layout.shape[-2:]) / ranks
    warnings.warn(
        f"gsr_kernels: {len(costly)} weights ({some([weight.name for weight in costly])}) are sharded along their long "
        f'side, where "drop" sums {now:,} bytes a step. '
        "fully_shard(..., shard_placement_fn=gsr_kernels.shard_placement_fn) shards the short side and sums "
        f"{free:,}; every rank then holds the long factors whole, {more:,.0f} bytes more, and keeps "
        f"{kept:,.0f} between the products of a step. "
        'out_of_span="keep" is free on either side',
        stacklevel=3,
    )


def _summed(weights: Sequence[Weight]) -> tuple[int, int]:
    """Return the bytes that a step sums, and those of the diagonals alone."""
    elements = [prod(weight.scheme.sums_shape(weight.basis.rank)) for weight in weights]
    now = sum(count * weight.basis.S.element_size() for count, weight in zip(elements, weights))
    return now, sum(weight.basis.S.nbytes for weight in weights)
