"""The decompositions of a model dealt to the ranks that hold it: each weight once, its factors back to their places."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch.distributed as dist
from torch import Tensor

from gsr_kernels.basis import SpectralBasis
from gsr_kernels.distributed.experts import basis_of_experts, whole_experts
from gsr_kernels.distributed.layout import agreed
from gsr_kernels.distributed.shard import as_shard
from gsr_kernels.distributed.sharded_sketch import basis_from_pieces, from_pieces
from gsr_kernels.distributed.transfers import gather, met, scatter
from gsr_kernels.io.bases_file import FACTORS
from gsr_kernels.linalg.cost import progress, svd_cost
from gsr_kernels.weight import Weight, decompose_one


def decompose_shared(weights: Sequence[Weight], parameters: Sequence[Tensor]) -> list[SpectralBasis]:
    """This rank's part of a new basis of every weight; every rank of every weight's mesh must call it.

    ``parameters`` are the ranks' own parts. Sketches of cut weights are found by all their ranks together, experts by
    those that hold them. Of the others the most costly come first, one a rank in each round: those of a round cost
    about the same, so that no rank waits long for another. Beside its own parts and what is on its way a rank holds
    one whole weight, then its factors.

    Raises ValueError, on every rank, where one cannot decompose its weight; RuntimeError where its memory is too small.
    """
    bases: dict[int, SpectralBasis] = {}
    layouts = [weight.scheme.layout for weight in weights]
    costs = [svd_cost(layout.shape) for layout in layouts]
    # NCCL wants all ranks of a group to have met before some of them exchange messages
    agreed(True, layouts)
    with progress("singular bases", sum(costs), shown=dist.get_rank() == 0) as bar:
        for place, (weight, part) in enumerate(zip(weights, parameters)):
            if from_pieces(weight) or whole_experts(weight):
                bases[place] = (basis_from_pieces if from_pieces(weight) else basis_of_experts)(weight, part)
                bar.update(costs[place])
        dealt = [place for place in range(len(weights)) if place not in bases]
        for places in _rounds(dealt, [layouts[place].ranks for place in dealt], costs):
            each = [weights[place] for place in places], [parameters[place] for place in places]
            bases.update(zip(places, _round(*each)))
            bar.update(sum(costs[place] for place in places))
    return [bases[place] for place in range(len(weights))]


def _rounds(weights: Sequence[int], ranks: Sequence[list[int]], costs: Sequence[int]) -> Iterator[list[int]]:
    """Of the weights of each mesh, as many as it has ranks, the most costly first."""
    meshes: dict[tuple[int, ...], list[int]] = {}
    for place, of in zip(weights, ranks):
        meshes.setdefault(tuple(of), []).append(place)
    for mesh, places in meshes.items():
        places.sort(key=lambda place: -costs[place])
        for start in range(0, len(places), len(mesh)):
            yield places[start : start + len(mesh)]


def _round(weights: Sequence[Weight], parts: Sequence[Tensor]) -> list[SpectralBasis]:
    """The i-th weight is decomposed by the i-th rank of the mesh that they share."""
    layouts = [weight.scheme.layout for weight in weights]
    mesh = layouts[0]
    gathered = [gather(layouts, parts)]

    def decompose() -> SpectralBasis | None:
        # from here on the factors are all that a rank holds of it
        whole = gathered.pop()
        if whole is None:
            return None
        return decompose_one(weights[mesh.place], whole if whole.is_cuda else whole.to(parts[mesh.place].device))

    factors, notes = met(mesh, decompose)
    places = [
        weight.scheme.factors({factor: note[factor][0] for factor in FACTORS}) for weight, note in zip(weights, notes)
    ]
    mine: list[dict[str, Tensor]] = [{} for _ in weights]
    for factor in FACTORS:
        dtypes = [note[factor][1] for note in notes[: len(weights)]]
        found = scatter([place[factor] for place in places], factors.pop(factor, None), dtypes)
        for parts_of_one, part_of_factor in zip(mine, found):
            parts_of_one[factor] = part_of_factor
    return [
        as_shard(layout, own, **note["origin"]).to(part.device)
        for layout, part, own, note in zip(layouts, parts, mine, notes)
    ]
