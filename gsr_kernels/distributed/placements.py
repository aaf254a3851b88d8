"""What is read from a model's parameters, and what is advised for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch.distributed as dist
from torch import Tensor, nn

from gsr_kernels.distributed.layout import Layout, cut_dim, local

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import Shard


def read_layouts(model: object, parameters: Mapping[str, Tensor]) -> dict[str, Layout]:
    """How each parameter lies: a DTensor as its placements say, any other whole, on every rank of a model in DDP.

    Raises ValueError, by the parameter's name, for placements that are not served.
    """
    replicas: tuple = ()
    if isinstance(model, nn.parallel.DistributedDataParallel):
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.tensor import Replicate

        replicas = (DeviceMesh.from_group(model.process_group, model.device_type), (Replicate(),))
    return {
        name: _read(name, parameter) if hasattr(parameter, "placements") else Layout(parameter.shape, *replicas)
        for name, parameter in parameters.items()
    }


def _read(name: str, parameter: Tensor) -> Layout:
    mesh, placements = parameter.device_mesh, tuple(parameter.placements)  # type: ignore[attr-defined]
    for placement in placements:
        if cut_dim(placement) is None and not placement.is_replicate():
            raise ValueError(f"{name} is placed as {placement}: redistribute it to Shard or Replicate before attach()")
    return Layout(parameter.shape, mesh, placements)


def check_gradient(name: str, parameter: Tensor, gradient: Tensor) -> None:
    """Raises RuntimeError for a gradient that is placed otherwise than its parameter."""
    placed, expected = (getattr(tensor, "placements", None) for tensor in (gradient, parameter))
    if placed != expected:
        raise RuntimeError(
            f"the gradient of {name} is placed as {placed} and the parameter as {expected}: redistribute it before "
            "optimizer.step()"
        )


def shard_placement_fn(parameter: nn.Parameter, mesh: DeviceMesh | None = None) -> Shard | None:
    """For ``fully_shard(shard_placement_fn=…)``: cuts matrices along their short side, where "drop" is free of traffic.

    The price is memory: every rank then holds the long factor of the basis whole. None, fully_shard's own choice of
    the first dimension, where that is the short side; where the ranks do not divide the second, which fully_shard
    refuses; where tensor parallelism has cut the long side, and the short one would save nothing; and for experts,
    which are then cut into whole matrices.

    Args:
        mesh: that of fully_shard, by ``functools.partial(shard_placement_fn, mesh=mesh)``; of two dimensions (HSDP)
            the second shards. None: all ranks together, which is safe on any mesh and on a smaller one may leave rows
            cut that need not be.
    """
    from torch.distributed.tensor import Shard

    if parameter.ndim != 2:
        return None
    d1, d2 = parameter.shape
    # what tensor parallelism has left of it is cut
    rows, columns = local(parameter).shape
    ranks = dist.get_world_size() if mesh is None else mesh.size(mesh.ndim - 1)
    return Shard(1) if d1 > d2 and rows == d1 and columns % ranks == 0 else None
