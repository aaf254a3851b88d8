"""Bases that the ranks of a weight share and gather: what the ranks do in the tests beside this file."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from weakref import ref

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import gsr_kernels
from gsr_kernels.distributed import step
from gsr_kernels.distributed.schemes import factor_shapes
from gsr_kernels.distributed.shard import gathered
from python_tests.distributed.decisions import refused
from python_tests.distributed.matrices import (
    OFFLOADED,
    OPTIONS,
    SHAPES,
    Wire,
    attached,
    distribute,
    make_model,
    matrices,
    set_gradients,
    train,
    whole,
)
from python_tests.distributed.memory import Held, nothing_sent
from python_tests.distributed.steps import Order, buckets_of
from python_tests.distributed.storage import Decomposed


def made(mesh, placements, shapes=SHAPES, dtype=torch.float64):
    model = make_model(matrices(0, shapes, dtype))
    distribute(model, mesh, placements)
    return model


def bits(layouts):
    """Count of weights that are not what they are with whole factors, by layout and option; in small buckets."""
    different = {}
    for sides, placements in layouts:
        mesh = init_device_mesh("cpu", sides)
        for settings in [OPTIONS[0], OPTIONS[3], {**OFFLOADED, "nonfinite": "error"}]:
            models = [made(mesh, placements) for _ in range(2)]
            with buckets_of(300):
                for model, shard_bases in zip(models, (False, True)):
                    train(model, {**settings, "shard_bases": shard_bases})
            ends = [[layer.weight.to_local() for layer in model.values()] for model in models]
            different[(sides, str(placements), *settings.values())] = sum(not torch.equal(a, b) for a, b in zip(*ends))
    return different


def held_and_sent(sides, placements, shapes):
    """By dtype of the bases and option: the bytes of U and Vh that this rank holds, and what it sends in a step."""
    mesh = init_device_mesh("cpu", sides)
    found = {}
    for dtype, out_of_span in product((torch.float32, torch.float16, torch.bfloat16), ("keep", "drop")):
        model = made(mesh, placements, shapes, torch.float32)
        optimizer, handle = attached(model, out_of_span=out_of_span, shard_bases=True)
        for weight in handle.weights:
            weight.keep(replace(weight.basis, U=weight.basis.U.to(dtype), Vh=weight.basis.Vh.to(dtype)))
        for number in range(2):
            set_gradients(model, matrices(number, shapes, torch.float32))
            with Wire() as wire:
                optimizer.step()
        found[dtype, out_of_span] = sum(b.U.nbytes + b.Vh.nbytes for b in handle.bases.values()), wire.seen
    return found


def at_a_time():
    """The most gathered bases that were there when one was used."""
    used, most = [], 0
    model = made(init_device_mesh("cpu", (2,)), [Shard(0)])
    optimizer, _ = attached(model, shard_bases=True, out_of_span="keep")
    set_gradients(model, matrices(1))
    of = step.ShardedStep.first, step.ShardedStep.second

    def counting(act):
        def counted(self, index, basis):
            nonlocal most
            used.append(ref(basis))
            most = max(most, sum(one() is not None for one in used))
            act(self, index, basis)

        return counted

    step.ShardedStep.first, step.ShardedStep.second = map(counting, of)
    try:
        optimizer.step()
    finally:
        step.ShardedStep.first, step.ShardedStep.second = of
    return most, len(used)


def room(layouts):
    """The most that gathered factors of equal weights took at once, in whole ones, by layout."""
    most = {}
    for sides, placements in layouts:
        model = made(init_device_mesh("cpu", sides), placements, {f"equal{index}": (64, 64) for index in range(5)})
        _, handle = attached(model, shard_bases=True, out_of_span="keep")
        with nothing_sent(), Held() as held:
            layouts = [w.scheme.factors(factor_shapes(w.basis.shape, w.basis.rank)) for w in handle.weights]
            bases = gathered((weight.basis, one) for weight, one in zip(handle.weights, layouts))
            for _ in handle.weights:
                next(bases)
        most[sides, str(placements)] = held.most / (8 * 64 * 64)
    return most


def products_before():
    """Counts of the products that a rank had launched when it began with each gather of a step."""
    model = made(init_device_mesh("cpu", (2,)), [Shard(0)])
    optimizer, _ = attached(model, shard_bases=True, out_of_span="keep")
    set_gradients(model, matrices(1))
    optimizer.step()
    with Order("_allgather_base_") as order:
        optimizer.step()
    return order.before


def kept(folder):
    """Bases that sharing ranks wrote, read with and without sharing, and sharded otherwise.

    Returns the counts of what was decomposed anew, and how far one step is from the one of those that wrote them.
    """
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    ends, counts = [], []
    for placement, shard_bases in ((Shard(1), True), (Shard(1), True), (Shard(1), False), (Shard(0), True)):
        model = made(mesh, [placement])
        with Decomposed() as decomposed:
            optimizer, _ = attached(model, shard_bases=shard_bases, bases=Path(folder, "shared"))
        counts.append(decomposed.count)
        set_gradients(model, matrices(1))
        optimizer.step()
        ends.append([whole(layer.weight) for layer in model.values()])
    far = [max(((a - b).norm() / b.norm()).item() for a, b in zip(end, ends[0])) for end in ends[1:]]
    return counts[1:], far


def refusals():
    """Errors of attach() where there is nothing to share: matrices of one's own, and replicas."""
    mesh = init_device_mesh("cpu", (2,))
    return [
        refused(attached, make_model(matrices(0)), shard_bases=True),
        refused(attached, made(mesh, [Replicate()]), shard_bases=True),
    ]


def gsr_adamw():
    """GSRAdamW with shared bases: how many weights differ from those of whole factors."""
    mesh = init_device_mesh("cpu", (2,))
    ends = []
    for shard_bases in (False, True):
        model = made(mesh, [Shard(0)])
        optimizer = gsr_kernels.GSRAdamW(model, 1e-2, rho=0.7, out_of_span="keep", shard_bases=shard_bases)
        set_gradients(model, matrices(1))
        optimizer.step()
        ends.append([layer.weight.to_local() for layer in model.values()])
    return sum(not torch.equal(a, b) for a, b in zip(*ends))


def experts():
    """Experts that one mesh dimension distributes and one shards: True if all bits are as with whole bases."""
    mesh = init_device_mesh("cpu", (2, 2))
    placements = [Shard(0), Shard(2)]
    torch.manual_seed(0)
    weights, gradient = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    ends = []
    for shard_bases in (False, True):
        model = torch.nn.Module()
        model.experts = torch.nn.Parameter(distribute_tensor(weights, mesh, placements))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        gsr_kernels.attach(model, optimizer, rho=0.7, out_of_span="keep", shard_bases=shard_bases)
        model.experts.grad = distribute_tensor(gradient, mesh, placements)
        optimizer.step()
        ends.append(model.experts.to_local())
    return torch.equal(*ends)
