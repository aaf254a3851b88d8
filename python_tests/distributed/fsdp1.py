"""Models that FullyShardedDataParallel has flattened: what the ranks do in the test beside this file."""

import warnings
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy, StateDictType
from torch.nn.parallel import DistributedDataParallel

import gsr_kernels
from gsr_kernels.methods import PSP
from python_tests.distributed.decisions import refused
from python_tests.distributed.matrices import Wire
from python_tests.distributed.storage import Decomposed
from python_tests.distributed.training import distance, gradients, make_model, train

SETTINGS = [
    {"out_of_span": "keep"},
    {"out_of_span": "drop"},
    {"out_of_span": "drop", "rank": 0.5},
    {"out_of_span": "keep", "shard_bases": True, "basis_device": "cpu"},
    {"out_of_span": "keep", "rank": 2, "randomized": True},
]


fsdp1 = partial(FullyShardedDataParallel, device_id=torch.device("cpu"))


def flattened(use_orig_params=True, strategy=ShardingStrategy.FULL_SHARD):
    """The first layer in a buffer of its own."""
    wrap = partial(fsdp1, use_orig_params=use_orig_params, sharding_strategy=strategy)
    first, *rest = make_model()
    return wrap(nn.Sequential(wrap(first), *rest))


def whole(model, make=make_model):
    """The weights of a flattened model, in one that is not."""
    found = make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with FullyShardedDataParallel.state_dict_type(model, StateDictType.FULL_STATE_DICT):
            found.load_state_dict(model.state_dict())
    return found


def trained(steps, model, **settings):
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    return optimizer, train(model, steps, dist.get_rank(), dist.get_world_size(), optimizer, **settings)


def agreement():
    """Distances from one process, and the messages of a step, by how parameters are kept and by option."""
    found = {}
    for settings in SETTINGS:
        reference = make_model()
        sharing = ("shard_bases", "basis_device")
        train(reference, 3, 0, 1, **{key: value for key, value in settings.items() if key not in sharing})
        for use_orig_params in (True, False):
            model = flattened(use_orig_params)
            optimizer, _ = trained(3, model, **settings)
            far = distance(whole(model), reference)
            gradients(model, 3, dist.get_rank(), dist.get_world_size())
            with Wire() as wire:
                optimizer.step()
            found[(use_orig_params, *settings.values())] = far, wire.seen
    return found


class PartlyUsed(nn.Module):
    """A model with a layer that one rank alone uses."""

    def __init__(self):
        super().__init__()
        self.layers, self.side = make_model(), nn.Linear(6, 2, dtype=torch.float64)

    def forward(self, batch, used):
        found = self.layers(batch)
        return found + self.side(batch) if used else found


def partly_used():
    """Distances from one process where step() calls a closure and a layer has a gradient on one rank alone."""

    def closure(model, optimizer, step, shares):
        optimizer.zero_grad()
        for share in shares:
            batch = torch.randn(4, 6, generator=torch.Generator().manual_seed(10 * step + share), dtype=torch.float64)
            model(batch, share == 0).square().mean().div(len(shares)).backward()

    def stepped(model, shares):
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        gsr_kernels.attach(model, optimizer, rho=0.7)
        for step in range(3):
            optimizer.step(partial(closure, model, optimizer, step, shares))
        return model

    reference = stepped(PartlyUsed(), range(dist.get_world_size()))
    replicated = DistributedDataParallel(PartlyUsed(), find_unused_parameters=True)
    found = [stepped(replicated, [dist.get_rank()]).module]
    for use_orig_params in (True, False):
        model = fsdp1(PartlyUsed(), use_orig_params=use_orig_params)
        found.append(whole(stepped(model, [dist.get_rank()]), PartlyUsed))
    return [distance(one, reference) for one in found]


def lost():
    """What a step says after one of an optimizer that lost a parameter."""
    model = flattened()
    optimizer, _ = trained(1, model)
    optimizer.param_groups[0]["params"].pop(2)
    optimizer.step()
    return refused(optimizer.step)


def advice():
    """The warnings that attach() gives on this rank."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for out_of_span in ("drop", "keep"):
            trained(0, flattened(), out_of_span=out_of_span)
    return [str(one.message) for one in caught if "flat shards" in str(one.message)]


def found_again(folder):
    """Bases in a directory, of as many ranks or others: weights decomposed, and the distance from one process."""
    reference, model = make_model(), flattened()
    train(reference, 3, 0, 1)
    with Decomposed() as decomposed:
        _, handle = trained(3, model, bases=Path(folder, "bases"))
    return decomposed.count, distance(whole(model), reference), handle.state_dict()["resuming"]


def refusals():
    """Errors of each call."""
    model = flattened()
    unsharded = flattened(strategy=ShardingStrategy.NO_SHARD)
    cases = [(model, {"method": PSP()}), (model, {"rho": 0.5, "record_every": 1}), (unsharded, {"rho": 0.5})]
    return [
        refused(gsr_kernels.GSRAdamW, model, rho=0.5),
        *(refused(gsr_kernels.attach, one, torch.optim.SGD(one.parameters(), 0.1), **given) for one, given in cases),
    ]
