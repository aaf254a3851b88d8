"""Decisions of all ranks where one alone sees why: what the ranks do in the tests beside this file."""

import os
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import gsr_kernels
from gsr_kernels.backends import choice
from gsr_kernels.backends.choice import Case, Verdict
from gsr_kernels.distributed import decompose
from gsr_kernels.methods import SR
from python_tests.distributed.storage import Decomposed, refused
from python_tests.distributed.training import distance, make_model, train


def made(placements, sides=None, mesh=None):
    """Four experts and a matrix, of the same placements."""
    mesh = mesh or init_device_mesh("cpu", sides or (dist.get_world_size(),))
    torch.manual_seed(0)
    model = nn.Module()
    model.experts = nn.Parameter(distribute_tensor(torch.randn(4, 6, 4), mesh, placements))
    model.linear = nn.Linear(6, 8, bias=False)
    model.linear.weight = nn.Parameter(distribute_tensor(torch.randn(8, 6), mesh, placements))
    return model


def give_gradients(model, broken=False):
    torch.manual_seed(1)
    for parameter in model.parameters():
        gradient = torch.randn(parameter.shape)
        if broken and parameter.ndim == 3:
            # of the first rank's
            gradient[0, 0, 0] = float("nan")
        parameter.grad = distribute_tensor(gradient, parameter.device_mesh, parameter.placements)


def in_parts():
    """ZeroRedundancyOptimizer: what attach() says of the part that a rank steps; distance of the whole from AdamW."""
    models = [DistributedDataParallel(make_model(dtype=torch.float32)) for _ in range(2)]
    zero = ZeroRedundancyOptimizer(models[0].parameters(), torch.optim.AdamW, lr=1e-2)
    said = refused(gsr_kernels.attach, models[0], zero.optim, rho=0.7)
    for model, optimizer in zip(models, (zero, torch.optim.AdamW(models[1].parameters(), lr=1e-2))):
        train(model, 3, dist.get_rank(), dist.get_world_size(), optimizer)
    return said, distance(*models)


def ways(folder):
    """Two nodes find other times and faults of the ways to step; the verdict of each rank, and what it still knows."""
    os.environ |= {"LOCAL_RANK": "0", "XDG_CACHE_HOME": f"{folder}/{dist.get_rank()}"}
    case = Case("step", torch.bfloat16, torch.float16, (64, 64, 64), "drop")
    choice.decisions.keep("cpu", {"of this node alone": {"seconds": {}, "wrong": {}}})
    found = [
        Verdict({"triton": 1.0, "cublas": 0.5, "torch": 2.0}),
        Verdict({"triton": 3.0, "torch": 2.5}, {"cublas": "NaN"}),
    ][dist.get_rank()]
    # what the other rank steps is decided here, too
    asked = [case] if dist.get_rank() else []
    choice.choose_on_all_ranks(torch.device("cpu"), asked, lambda cases: {one.key: found for one in cases})
    verdict = choice.verdict("cpu", case)
    return verdict.backend, dict(verdict.seconds), dict(verdict.wrong), list(choice.verdicts("cpu"))


def strict(placements, sides=None):
    """A NaN in one expert under "error": what the step raised and whether all gradients stayed as they came."""
    model = made(placements, sides)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    gsr_kernels.attach(model, optimizer, rho=0.5, out_of_span="keep", nonfinite="error")
    give_gradients(model, broken=True)
    came = [parameter.grad.to_local().clone() for parameter in model.parameters()]
    message = ""
    try:
        optimizer.step()
    except FloatingPointError as error:
        message = str(error)
    same = zip(came, model.parameters())
    return message, all(torch.equal(G.nan_to_num(7), W.grad.to_local().nan_to_num(7)) for G, W in same)


def without_gradients_at_rate_zero():
    """Steps counted, at rate zero, where all ranks but the first have no gradients, and therefore no state."""
    model = made([Shard(0)])
    optimizer = torch.optim.SGD(model.parameters(), 0.0, momentum=0.9)
    handle = gsr_kernels.attach(model, optimizer, rho=0.5)
    for _ in range(2):
        give_gradients(model)
        if dist.get_rank():
            optimizer.zero_grad()
        optimizer.step()
    return handle.state_dict()["steps"]


def other_weights(folder):
    """Bases of other weights in the file, asked for by one rank alone, then saved by all: whether they are new ones."""
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5)))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    first, second = Path(folder, "first.safetensors"), Path(folder, "second.safetensors")
    gsr_kernels.attach(model, optimizer, rho=0.5, bases=first).remove()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    handle = gsr_kernels.attach(model, optimizer, rho=0.5, bases=first)
    if dist.get_rank() == 0:
        handle.metrics()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        handle.save_bases(second)
    old, new = (gsr_kernels.load_bases(path) for path in (first, second))
    return [torch.allclose(2 * old[name].S, new[name].S) for name in handle.bases]


def failures(folder):
    """Errors of each rank where one alone had reason to."""
    first = dist.get_rank() == 0
    model = made([Shard(1)])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    path = Path(folder, "there" if first else "nowhere", "bases")
    if first:
        path.parent.mkdir()
    found = [refused(gsr_kernels.attach, model, optimizer, rho=0.5, bases=path)]

    of_one = decompose.decompose_one

    def short_of_memory(weight, W):
        if first:
            raise torch.OutOfMemoryError("no memory")
        return of_one(weight, W)

    decompose.decompose_one = short_of_memory
    found.append(refused(gsr_kernels.attach, model, optimizer, rho=0.5))
    decompose.decompose_one = of_one

    handle = gsr_kernels.attach(model, optimizer, rho=0.5, bases=Path(folder, "kept"))
    saved = handle.state_dict()
    with torch.no_grad():
        model.linear.weight.mul_(2)
    handle.refresh()
    found.append(refused(handle.load_state_dict, saved, Path(folder, "kept" if first else "other")))

    give_gradients(model)
    placed = model.linear.weight.grad
    model.linear.weight.grad = placed.redistribute(placed.device_mesh, [Shard(0)])
    found.append(refused(optimizer.step))
    return found


def experts(folder):
    """A method with state of its own on experts; then the counts of skipped experts before and after a checkpoint."""
    model = made([Shard(0)])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    message = refused(gsr_kernels.attach, model, optimizer, SR(), targets=["experts"])
    handle = gsr_kernels.attach(model, optimizer, rho=0.5)
    give_gradients(model, broken=True)
    optimizer.step()
    counted = handle.metrics()["experts"]["skipped_nonfinite"]
    dcp.save({"gsr": handle}, checkpoint_id=Path(folder, "experts"))
    dcp.load({"gsr": handle}, checkpoint_id=Path(folder, "experts"))
    return message, counted, handle.metrics()["experts"]["skipped_nonfinite"]


def side_by_side(folder, shared):
    """Two groups of two ranks keep bases, each its own or both at one path: what is there, and what they find in it."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replica", "tensor"))["tensor"]
    path = Path(folder, "bases" if shared else f"bases-{dist.get_rank() // 2}")
    found = []
    for _ in range(2):
        model = made([Shard(1)], mesh=mesh)
        handle = gsr_kernels.attach(model, torch.optim.SGD(model.parameters(), 0.1), rho=0.5, bases=path)
        found.append(handle.state_dict()["resuming"])
        dist.barrier()
    return sorted(one.name for one in Path(folder).iterdir()), found


def broken_off(folder):
    """A write of bases that ended between its two renames: what is found of the old ones."""
    model = made([Shard(1)])
    path = Path(folder, "bases")
    gsr_kernels.attach(model, torch.optim.SGD(model.parameters(), 0.1), rho=0.5, bases=path)
    dist.barrier()
    if dist.get_rank() == 0:
        path.rename(path.with_name(".bases.old"))
    dist.barrier()
    with Decomposed() as decomposed:
        gsr_kernels.attach(model, torch.optim.SGD(model.parameters(), 0.1), rho=0.5, bases=path)
    return decomposed.count


def placed_by_default():
    """Placements that shard_placement_fn gives experts, and of a tall matrix."""
    return [
        str(gsr_kernels.shard_placement_fn(nn.Parameter(torch.empty(shape)))) for shape in ((4, 16, 4), (16, 4), (16,))
    ]
