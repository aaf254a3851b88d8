"""Weights where parallelism of several kinds puts them: what the ranks do in the tests beside this file."""

from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.distributed.tensor.placement_types import _StridedShard

import gsr_kernels
from python_tests.distributed.decisions import refused
from python_tests.distributed.matrices import Wire, attached, whole
from python_tests.distributed.storage import Decomposed
from python_tests.distributed.training import distance, gradients, make_model, train


def hsdp_for_drop():
    """Columns that the shard dimension divides and all ranks do not: placements, distance from one process, traffic."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    sides, place = (6, 13, 4), partial(gsr_kernels.shard_placement_fn, mesh=mesh)
    reference = make_model(sides)
    train(reference, 2, 0, 1)
    model = make_model(sides)
    unaware = [str(gsr_kernels.shard_placement_fn(layer.weight)) for layer in model[::2]]
    fully_shard(model, mesh=mesh, shard_placement_fn=place)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    train(model, 2, dist.get_rank(), 4, optimizer)
    far = distance(model, reference)
    gradients(model, 2, dist.get_rank(), 4)
    with Wire() as wire:
        optimizer.step()
    return unaware, [str(layer.weight.placements) for layer in model[::2]], far, wire.seen


def unequal_shards_of_shards(folder):
    """fully_shard over tensor parallelism on rows that do not come out even: distances; what resuming decomposed."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    data, sides = mesh["data"].get_local_rank(), (6, 13, 3)
    found = []

    def made():
        model = make_model(sides)
        parallel = ColwiseParallel(output_layouts=Replicate())
        parallelize_module(model, mesh["tensor"], {"0": parallel, "2": parallel})
        fully_shard(model, mesh=mesh["data"], shard_placement_fn=gsr_kernels.shard_placement_fn)
        return model

    for out_of_span in ("keep", "drop"):
        reference = make_model(sides)
        train(reference, 3, 0, 1, out_of_span=out_of_span)
        model = made()
        path = Path(folder, out_of_span)
        train(model, 3, data, 2, out_of_span=out_of_span, bases=path)
        with Decomposed() as decomposed:
            handle = attached(made(), out_of_span=out_of_span, bases=path)[1]
        found.append((distance(model, reference), decomposed.count, handle.state_dict()["resuming"]))
    return found, [str(layer.weight.placements) for layer in model[::2]]


def attention(placement):
    """nn.MultiheadAttention's q, k and v in one, on two ranks: what attach() raised, or the error of two steps."""
    torch.manual_seed(0)
    mesh = init_device_mesh("cpu", (2,))
    alone, placed = (nn.MultiheadAttention(4, 2, bias=False, dtype=torch.float64) for _ in range(2))
    placed.load_state_dict(alone.state_dict())
    placed.in_proj_weight = nn.Parameter(distribute_tensor(placed.in_proj_weight.detach(), mesh, [placement]))
    message = refused(attached, placed)
    if message:
        return message
    one, many = attached(alone)[0], attached(placed)[0]
    for step in range(2):
        torch.manual_seed(step)
        gradient = torch.randn(12, 4, dtype=torch.float64)
        alone.in_proj_weight.grad = gradient.clone()
        placed.in_proj_weight.grad = distribute_tensor(gradient, mesh, [placement])
        one.step()
        many.step()
    return (whole(placed.in_proj_weight) - alone.in_proj_weight).norm().item()


def in_one():
    """``attention`` replicated and sharded."""
    return [attention(placement) for placement in (Replicate(), Shard(0), Shard(1))]


def partial_gradients():
    """Replicated weights with a sharded input, two steps: the gradient's placement, the error against one process."""
    torch.manual_seed(0)
    mesh = init_device_mesh("cpu", (2,))
    begun, batch = torch.randn(5, 4, dtype=torch.float64), torch.randn(8, 4, dtype=torch.float64)
    found, ends = [], []
    for place in (lambda whole, _: whole, lambda whole, placement: distribute_tensor(whole, mesh, [placement])):
        model = nn.Linear(4, 5, bias=False)
        model.weight = nn.Parameter(place(begun.clone(), Replicate()))
        optimizer, _ = attached(model)
        for _ in range(2):
            optimizer.zero_grad()
            model(place(batch, Shard(0))).square().sum().backward()
            found.append(str(getattr(model.weight.grad, "placements", None)))
            optimizer.step()
        ends.append(whole(model.weight).detach())
    return found[2:], (ends[1] - ends[0]).norm().item()


def packed_experts():
    """Gate and up projections in one, each sharded in itself, as tensor parallelism does: what attach() raised."""
    mesh = init_device_mesh("cpu", (2,))
    model = nn.Module()
    packed = DTensor.from_local(torch.randn(3, 4, 6), mesh, [_StridedShard(1, split_factor=2)], run_check=False)
    model.experts = nn.Parameter(packed)
    return refused(attached, model)
