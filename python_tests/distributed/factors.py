"""Whole factors from their shards."""

import torch
import torch.distributed as dist

from gsr_kernels.distributed.layout import slices
from gsr_kernels.distributed.schemes import factor_shapes


def wholes(weight):
    """U, S and Vh of a weight, whole, by name; and whether all ranks that hold the same part have the same bits."""
    basis, same, factors = weight.basis, True, {}
    shapes = factor_shapes(basis.shape, basis.rank)
    for name, layout in weight.scheme.factors(shapes).items():
        part = getattr(basis, name)
        held = [None] * dist.get_world_size()
        dist.all_gather_object(held, (layout.block(), part.cpu()))
        first = dict(reversed(held))
        same = same and all(torch.equal(first[block], other) for block, other in held)
        factors[name] = part.new_empty(shapes[name])
        for block, other in first.items():
            factors[name][slices(block)] = other.to(part.device)
    return factors, same
