"""What two processes that share one GPU do in the test beside this file."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

import gsr_kernels
from gsr_kernels.backends.torch.rescale_gradient import rescale_gradient
from python_tests.distributed.factors import wholes
from python_tests.oracle import diagonal, double, error, two_products

SHAPES = {"tall": (513, 256), "wide": (256, 1000), "square": (384, 384)}


def agreement(device):
    """Errors of a rank's piece of a rescaled gradient and of torch's on one process, by dimension, option and weight.

    Both from the same basis as stored, in float32, against float64.
    """
    mesh = DeviceMesh.from_group(dist.group.WORLD, device)
    rank, errors = dist.get_rank(), {}
    generator = torch.Generator().manual_seed(0)
    drawn = {name: torch.randn(2, *shape, generator=generator).to(device) for name, shape in SHAPES.items()}
    for dim in (0, 1):
        for out_of_span in ("keep", "drop"):
            model = nn.ModuleDict()
            for name, (W, G) in drawn.items():
                model[name] = nn.Linear(1, 1, bias=False)
                pieces = [_placed(one.chunk(2, dim)[rank].clone(), mesh, dim, one) for one in (W, G)]
                model[name].weight = nn.Parameter(pieces[0])
                model[name].weight.grad = pieces[1]
            optimizer = torch.optim.SGD(model.parameters(), 0.0, momentum=0.9)
            handle = gsr_kernels.attach(model, optimizer, rho=0.5, out_of_span=out_of_span)
            optimizer.step()
            for weight, (name, (_, G)) in zip(handle.weights, drawn.items()):
                U, S, Vh = wholes(weight)[0].values()
                wide = double(G, U, S, Vh)
                truth = two_products(wide[0], diagonal(wide[0], wide[1], wide[3]), *wide[1:], 0.5, out_of_span)
                plain = torch.empty_like(G)
                rescale_gradient(G, U.float(), S, Vh.float(), 0.5, out_of_span, plain)
                right, own = truth.chunk(2, dim)[rank], plain.chunk(2, dim)[rank]
                found = error(model[name].weight.grad.to_local(), right), error(own, right)
                errors[dim, out_of_span, name] = found
    return errors


def _placed(part, mesh, dim, whole):
    return DTensor.from_local(part, mesh, [Shard(dim)], run_check=False, shape=whole.shape, stride=whole.stride())
