"""Decompositions distributed over the ranks by cost: each weight once, then its factors to the ranks that keep them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor

from gsr_kernels.basis import SpectralBasis
from gsr_kernels.distributed.agreement import all_ranks_agree
from gsr_kernels.distributed.layout import Layout
from gsr_kernels.distributed.shard import as_shard
from gsr_kernels.distributed.sharded_sketch import basis_from_shards, is_from_shards
from gsr_kernels.distributed.transfers import decompose_and_describe, exchange, gather, scatter
from gsr_kernels.io.bases_file import FACTORS
from gsr_kernels.linalg.side_by_side import progress, svd_cost
from gsr_kernels.weight import Weight, decompose_one, origin


def decompose_shared(weights: Sequence[Weight]) -> list[SpectralBasis]:
    """Return this rank's shard of a new basis of every weight; every rank of every weight's mesh must call it.

    Sketches of sharded weights are found by all their ranks together, experts by those that hold them. Of the others
    the most costly come first, one a rank in each round, so that no rank waits long for another. Beside its own shards
    and what is on its way a rank holds one whole weight, then its factors. Raises as ``decompose_and_describe``.
    """
    bases: dict[int, SpectralBasis] = {}
    layouts = [weight.scheme.layout for weight in weights]
    costs = [svd_cost(layout.shape) for layout in layouts]
    # NCCL wants all ranks of a group to have met before some of them exchange messages
    all_ranks_agree(True, layouts)
    with progress("singular bases", sum(costs), shown=dist.get_rank() == 0) as bar:
        for index, weight in enumerate(weights):
            layout = layouts[index]
            if is_from_shards(weight):
                bases[index] = basis_from_shards(weight)
            elif len(layout.shape) > 2 and not layout.shards_matrices and not weight.method.basis_kind:
                # several matrices, each whole on its rank, that can be decomposed one apart from another
                bases[index] = _basis_of_experts(weight)
        bar.update(sum(costs[index] for index in bases))
        others = [index for index in range(len(weights)) if index not in bases]
        for indices in _rounds(others, [layouts[index].ranks for index in others], costs):
            bases.update(zip(indices, _round([weights[index] for index in indices])))
            bar.update(sum(costs[index] for index in indices))
    return [bases[index] for index in range(len(weights))]


def _rounds(weights: Sequence[int], ranks: Sequence[list[int]], costs: Sequence[int]) -> Iterator[list[int]]:
    """Yield as many weights of each mesh as it has ranks, the most costly first."""
    meshes: dict[tuple[int, ...], list[int]] = {}
    for index, of in zip(weights, ranks):
        meshes.setdefault(tuple(of), []).append(index)
    for mesh, indices in meshes.items():
        indices.sort(key=lambda index: -costs[index])
        for start in range(0, len(indices), len(mesh)):
            yield indices[start : start + len(mesh)]


def _round(weights: Sequence[Weight]) -> list[SpectralBasis]:
    """Return this rank's shards of the bases, of which the i-th rank of the one mesh decomposes the i-th."""
    layouts, shards = [weight.scheme.layout for weight in weights], [weight.held for weight in weights]
    mesh = layouts[0]
    gathered = [gather(layouts, shards)]

    def decompose() -> SpectralBasis | None:
        # from here on the factors are all that a rank holds of it
        whole = gathered.pop()
        if whole is None:
            return None
        return decompose_one(weights[mesh.index], whole if whole.is_cuda else whole.to(shards[mesh.index].device))

    factors, described = decompose_and_describe(mesh, decompose)
    placed = [
        weight.scheme.factors({factor: one[factor][0] for factor in FACTORS}) for weight, one in zip(weights, described)
    ]
    own: list[dict[str, Tensor]] = [{} for _ in weights]
    for factor in FACTORS:
        dtypes = [one[factor][1] for one in described[: len(weights)]]
        found = scatter([one[factor] for one in placed], factors.pop(factor, None), dtypes)
        for factors_of_one, shard in zip(own, found):
            factors_of_one[factor] = shard
    return [
        as_shard(layout, factors_of_one, **one["metadata"]).to(shard.device)
        for layout, shard, factors_of_one, one in zip(layouts, shards, own, described)
    ]


def _basis_of_experts(weight: Weight) -> SpectralBasis:
    """Return the basis of a weight's matrices on this rank; replicas decompose an equal number each for one another."""
    layout, held = weight.scheme.layout, weight.held
    shares = _shares(layout)
    mine = shares[layout.index]
    decomposed, described = decompose_and_describe(
        layout, lambda: decompose_one(weight, held[mine]) if len(held[mine]) else None
    )
    # a rank may hold none
    one = next(one for one in described if one)
    factors = {}
    for factor in FACTORS:
        own, (shape, dtype) = decomposed.pop(factor, None), one[factor]
        if own is not None and len(own) == len(held):
            factors[factor] = own.to(layout.device)
            continue
        factors[factor] = torch.empty((len(held), *shape[1:]), dtype=dtype, device=layout.device)
        if own is not None:
            factors[factor][mine] = own.to(layout.device)
    others = {index: theirs for index, theirs in shares.items() if index != layout.index}
    sent = [(index, whole[mine]) for index in others for whole in factors.values()]
    exchange(layout, sent, [(index, whole[theirs]) for index, theirs in others.items() for whole in factors.values()])
    known = {**one["metadata"], "fingerprint": origin(weight)}
    return as_shard(layout, factors, **known).to(held.device)


def _shares(layout: Layout) -> dict[int, slice]:
    """Return what each replica, by its index in the mesh, decomposes of this rank's matrices."""
    block = layout.block()
    replicas = [index for index in range(len(layout.ranks)) if layout.block(index) == block]
    count = block[0][1] - block[0][0]
    # as even as can be
    bounds = [count * i // len(replicas) for i in range(len(replicas) + 1)]
    return {index: slice(*bound) for index, bound in zip(replicas, pairwise(bounds))}
