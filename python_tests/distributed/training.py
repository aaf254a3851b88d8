"""Models trained by torch's own parallelism, forward and backward: what the ranks do in the tests beside this file."""

import warnings
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import gsr_kernels
from gsr_kernels.methods import PSP
from python_tests.distributed.matrices import Wire

BATCH = 24


def make_model(sides=(6, 13, 5, 2), dtype=torch.float64):
    torch.manual_seed(3)
    layers = [nn.Linear(d2, d1) for d2, d1 in pairwise(sides)]
    return nn.Sequential(*[part for layer in layers for part in (layer, nn.Tanh())]).to(dtype)


def gradients(model, step, share, shares):
    """The loss of one rank's rows of a batch; their gradients' mean over the ranks is the batch's."""
    generator = torch.Generator().manual_seed(step)
    # of flattened parameters the shapes are gone
    first = next(module for module in model.modules() if isinstance(module, nn.Linear))
    batch = torch.randn(BATCH, first.in_features, generator=generator, dtype=next(model.parameters()).dtype)
    model(batch[share * BATCH // shares : (share + 1) * BATCH // shares]).square().sum().mul(shares / BATCH).backward()


def train(model, steps, share, shares, optimizer=None, **settings):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    handle = gsr_kernels.attach(model, optimizer, **{"rho": 0.7, **settings})
    for step in range(steps):
        optimizer.zero_grad()
        gradients(model, step, share, shares)
        optimizer.step()
    return handle


def distance(model, reference):
    wholes = [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(wholes, reference.parameters()))


def fully_sharded():
    """FSDP2, with rows that do not come out even and ranks without any, and HSDP: distances from one process."""
    world = dist.get_world_size()
    sides = [(world,), (2, world // 2)] if world == 4 else [(world,)]
    found = {}
    for out_of_span in ("keep", "drop"):
        reference = make_model()
        train(reference, 3, 0, 1, out_of_span=out_of_span)
        for shape in sides:
            mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard")[-len(shape) :])
            model = make_model()
            for layer in model:
                fully_shard(layer, mesh=mesh)
            fully_shard(model, mesh=mesh)
            share = dist.get_rank()
            train(model, 3, share, world, out_of_span=out_of_span)
            found[shape, out_of_span] = distance(model, reference)
    return found


def on_both_meshes():
    """Tensor parallelism under FSDP2, 2 x 2, one layer left plain: distances, and the bytes of each collective."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    data = mesh["data"].get_local_rank()
    found = {}
    for out_of_span in ("keep", "drop"):
        sides = (6, 12, 8, 5)
        reference = make_model(sides)
        train(reference, 3, 0, 1, out_of_span=out_of_span)
        model = make_model(sides)
        parallelize_module(model, mesh["tensor"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
        plain = {model[4].weight, model[4].bias}
        fully_shard(model, mesh=mesh["data"], ignored_params=plain)
        for parameter in plain:
            parameter.register_post_accumulate_grad_hook(
                lambda p: dist.all_reduce(p.grad.div_(2), group=mesh["data"].get_group())
            )
        placements = [str(model[i].weight.placements) for i in (0, 2)]
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        train(model, 3, data, 2, optimizer, out_of_span=out_of_span)
        found[out_of_span] = distance(model, reference)
    return found, placements


def placed_for_drop():
    """fully_shard with the placements that make "drop" free: distance from one process, bytes sent and held."""
    world = dist.get_world_size()
    sides = (8, 13, 4, 12, 4)
    reference = make_model(sides)
    train(reference, 3, 0, 1)
    model = make_model(sides)
    fully_shard(model, shard_placement_fn=gsr_kernels.shard_placement_fn)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    handle = train(model, 3, dist.get_rank(), world, optimizer)
    far = distance(model, reference)
    gradients(model, 3, dist.get_rank(), world)
    with Wire() as wire:
        optimizer.step()
    held = sum(basis.nbytes for basis in handle.bases.values())
    return far, wire.seen, [str(layer.weight.placements[0]) for layer in model[::2]], held


def replicas():
    """DDP: 200 steps of AdamW on rows of one's own; how many weights and basis factors differ from the first rank's."""
    torch.manual_seed(5)
    model = DistributedDataParallel(make_model((6, 13, 8, 8), torch.float32))
    handle = train(model, 200, dist.get_rank(), dist.get_world_size(), torch.optim.AdamW(model.parameters(), 1e-2))
    tensors = [*model.parameters()]
    for basis in handle.bases.values():
        tensors += [basis.U, basis.S, basis.Vh]
    different = 0
    for tensor in tensors:
        first = tensor.detach().clone()
        dist.broadcast(first, 0)
        different += not torch.equal(first, tensor)
    return different, len(tensors), min(weight.steps for weight in handle.weights)


def refusals():
    """Errors of each call."""
    model = make_model()
    fully_shard(model)
    found = []
    for settings in (
        {"method": PSP()},
        {"method": [gsr_kernels.GSR(rho=0.5), PSP()]},
        {"rho": 0.5, "record_every": 1},
        {"rho": 0.5, "heads": {"0": 13}},
    ):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        try:
            gsr_kernels.attach(model, optimizer, **settings)
        except (TypeError, ValueError) as error:
            found.append(f"{type(error).__name__}: {error}")
    late = make_model()
    optimizer = torch.optim.SGD(late.parameters(), 0.1)
    gsr_kernels.attach(late, optimizer, rho=0.5)
    fully_shard(late)
    # as accelerate does it
    optimizer.param_groups[0]["params"] = list(late.parameters())
    try:
        optimizer.step()
    except RuntimeError as error:
        found.append(str(error))
    broken = make_model()
    with torch.no_grad():
        broken[2].weight[0, 0] = float("inf")
    fully_shard(broken)
    try:
        gsr_kernels.attach(broken, torch.optim.SGD(broken.parameters(), 0.1), rho=0.5)
    except ValueError as error:
        found.append(str(error))
    return found


def advice():
    """The warning that attach() gives on the first rank where "drop" is dear."""
    model = make_model((8, 16, 16))
    fully_shard(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gsr_kernels.attach(model, torch.optim.SGD(model.parameters(), 0.1), rho=0.5)
    return [str(one.message) for one in caught if "shard_placement_fn" in str(one.message)]
