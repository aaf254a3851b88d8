"""Factors whose parts lie on ranks, put together."""

import torch
import torch.distributed as dist

from gsr_kernels.distributed.layout import at


def wholes(weight):
    """U, S and Vh of a weight, whole, by name; and whether all ranks that hold the same part have the same bits."""
    basis, same, factors = weight.basis, True, {}
    d1, d2 = basis.shape
    shapes = {"U": torch.Size((d1, basis.rank)), "S": torch.Size((basis.rank,)), "Vh": torch.Size((basis.rank, d2))}
    for name, layout in weight.scheme.factors(shapes).items():
        part = getattr(basis, name)
        held = [None] * dist.get_world_size()
        dist.all_gather_object(held, (layout.block(), part.cpu()))
        first = dict(reversed(held))
        same = same and all(torch.equal(first[block], other) for block, other in held)
        factors[name] = part.new_empty(shapes[name])
        for block, other in first.items():
            factors[name][at(block)] = other.to(part.device)
    return factors, same
