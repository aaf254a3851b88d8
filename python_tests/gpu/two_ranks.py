"""What two processes that share one GPU do in the test beside this file."""

from itertools import product

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

import gsr_kernels
from gsr_kernels.backends.torch.rescale_gradient import rescale_gradient
from python_tests.distributed.factors import wholes
from python_tests.distributed.own_optimizer import error_of_move
from python_tests.oracle import diagonal, double, error, two_products

SHAPES = {"tall": (513, 256), "wide": (256, 1000), "square": (384, 384)}
OPTIONS = [
    (torch.float32, {"out_of_span": "keep"}),
    (torch.float32, {"out_of_span": "drop"}),
    (torch.float16, {"out_of_span": "keep"}),
    (torch.float16, {"out_of_span": "drop"}),
    (torch.float32, {"out_of_span": "drop", "shard_bases": True}),
    (torch.float32, {"out_of_span": "keep", "rank": 32, "randomized": True}),
]


def agreement(device):
    """Errors of a rank's piece of a rescaled gradient and of torch's on one process, by weight, dimension and options.

    Both from the same basis as stored, in float32, against float64.
    """
    mesh = DeviceMesh.from_group(dist.group.WORLD, device)
    rank, errors = dist.get_rank(), {}
    for dim, (dtype, settings) in product((0, 1), OPTIONS):
        drawn = _drawn(device, dtype)
        model = nn.ModuleDict()
        for name, (W, G) in drawn.items():
            model[name] = nn.Linear(1, 1, bias=False)
            model[name].weight = nn.Parameter(_placed(W, mesh, dim))
            model[name].weight.grad = _placed(G, mesh, dim)
        optimizer = torch.optim.SGD(model.parameters(), 0.0, momentum=0.9)
        handle = gsr_kernels.attach(model, optimizer, rho=0.5, **settings)
        optimizer.step()
        for weight, (name, (_, G)) in zip(handle.weights, drawn.items()):
            U, S, Vh = wholes(weight)[0].values()
            wide, out_of_span = double(G, U, S, Vh), settings["out_of_span"]
            truth = two_products(wide[0], diagonal(wide[0], wide[1], wide[3]), *wide[1:], 0.5, out_of_span)
            plain = torch.empty_like(G)
            rescale_gradient(G, U.float(), S, Vh.float(), 0.5, out_of_span, plain)
            right, own = truth.chunk(2, dim)[rank], plain.chunk(2, dim)[rank]
            found = error(model[name].weight.grad.to_local(), right), error(own, right)
            errors[(name, dim, dtype, *settings.items())] = found
    return errors


def moves(device):
    """Errors of what two steps of GSRAdamW move pieces against what they move whole weights, by dimension."""
    mesh = DeviceMesh.from_group(dist.group.WORLD, device)
    drawn = _drawn(device, torch.float32)
    begun = [W for W, _ in drawn.values()]

    def trained(place):
        parameters = {name: nn.Parameter(place(W)) for name, (W, _) in drawn.items()}
        optimizer = gsr_kernels.GSRAdamW(parameters.items(), 1e-2, rho=0.5, out_of_span="keep")
        for _ in range(2):
            for name, (_, G) in drawn.items():
                parameters[name].grad = place(G)
            optimizer.step()
        return [parameter.detach() for parameter in parameters.values()]

    expected, found = trained(torch.clone), {}
    for dim in (0, 1):
        mine = [weight.to_local() for weight in trained(lambda whole, dim=dim: _placed(whole, mesh, dim))]
        right, old = ([one.chunk(2, dim)[dist.get_rank()] for one in several] for several in (expected, begun))
        found[dim] = error_of_move(mine, right, old)
    return found


def _drawn(device, dtype):
    """A weight and a gradient of each shape, the same on both ranks."""
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(2, *shape, generator=generator).to(device, dtype) for name, shape in SHAPES.items()}


def _placed(whole, mesh, dim):
    part = whole.chunk(2, dim)[dist.get_rank()].clone()
    return DTensor.from_local(part, mesh, [Shard(dim)], run_check=False, shape=whole.shape, stride=whole.stride())
