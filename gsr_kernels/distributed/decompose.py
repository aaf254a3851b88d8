"""The decompositions of a model dealt to the ranks that hold it: each weight once, its factors back to their places."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gsr_kernels.bases_file import FACTORS
from gsr_kernels.basis import SpectralBasis
from gsr_kernels.distributed.layout import Layout, agreed, at, count, sides
from gsr_kernels.distributed.randomized_svd import basis_from_pieces, from_pieces
from gsr_kernels.distributed.shard import as_shard, origin_of
from gsr_kernels.linalg.cost import progress, svd_cost
from gsr_kernels.optim.weights import Weight, decompose_one


def decompose_shared(weights: Sequence[Weight], parameters: Sequence[Tensor]) -> list[SpectralBasis]:
    """This rank's part of a new basis of every weight; every rank of every weight's mesh must call it.

    ``parameters`` are the ranks' own parts. The most costly weights come first, one a rank in each round: those of a
    round cost about the same, so that no rank waits long for another. A rank holds one whole weight, then its factors,
    beside its own parts; where columns are cut also contiguous copies of the pieces that travel.

    Raises ValueError, on every rank, where one cannot decompose its weight; RuntimeError where its memory is too small.
    """
    bases: dict[int, SpectralBasis] = {}
    layouts = [weight.scheme.layout for weight in weights]
    costs = [svd_cost(layout.shape) for layout in layouts]
    # NCCL wants all ranks of a group to have met before some of them exchange messages
    agreed(True, layouts)
    sketched = [place for place, weight in enumerate(weights) if from_pieces(weight)]
    with progress("singular bases", sum(costs), shown=dist.get_rank() == 0) as bar:
        for place in sketched:
            bases[place] = basis_from_pieces(weights[place], parameters[place])
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
    mesh = weights[0].scheme.layout
    whole = _gather(weights, parts)
    basis: SpectralBasis | None = None
    note: dict[str, Any] = {}
    if whole is not None:
        try:
            basis = decompose_one(weights[mesh.place], whole if whole.is_cuda else whole.to(parts[mesh.place].device))
            factors = {factor: getattr(basis, factor) for factor in FACTORS}
            note = {
                "factors": {factor: (tensor.shape, tensor.dtype) for factor, tensor in factors.items()},
                "origin": origin_of(basis),
            }
        except Exception as error:
            note = {"error": str(error), "kind": ValueError if isinstance(error, ValueError) else RuntimeError}
    # from here on the factors are all that a rank holds of it
    del whole
    notes: list[Any] = [None] * len(mesh.ranks)
    dist.all_gather_object(notes, (mesh.place, note), group=mesh.team)
    by_place = dict(notes)
    for found in by_place.values():
        if "error" in found:
            raise found["kind"](found["error"])
    return _scatter(weights, parts, basis, by_place)


def _gather(weights: Sequence[Weight], parts: Sequence[Tensor]) -> Tensor | None:
    """The i-th weight whole on the i-th rank; None on a rank for which there is none."""
    mesh = weights[0].scheme.layout
    transfers, whole, arriving = _Transfers(mesh), None, []
    for owner, (weight, part) in enumerate(zip(weights, parts)):
        layout = weight.scheme.layout
        mine, holders = layout.block(), layout.holders()
        if owner == mesh.place:
            whole = torch.empty(layout.shape, dtype=part.dtype, device=mesh.device)
            whole[at(mine)] = part.detach().to(mesh.device)
            for block, place in holders.items():
                if block != mine:
                    target = whole[at(block)]
                    # rows arrive where they belong, columns beside it
                    tensor = target if target.is_contiguous() else torch.empty_like(target).contiguous()
                    transfers.receive(place, tensor)
                    arriving.append((target, tensor))
        elif holders.get(mine) == mesh.place and mine != layout.block(owner):
            transfers.send(owner, part.detach())
    transfers.run()
    for target, tensor in arriving:
        if tensor is not target:
            target.copy_(tensor)
    return whole


def _scatter(
    weights: Sequence[Weight], parts: Sequence[Tensor], basis: SpectralBasis | None, notes: dict[int, Any]
) -> list[SpectralBasis]:
    """Each rank's parts of the factors that the i-th rank has of the i-th weight."""
    mesh = weights[0].scheme.layout
    transfers, held = _Transfers(mesh), []
    for owner, weight in enumerate(weights):
        of = weight.scheme.factors({factor: shape for factor, (shape, _) in notes[owner]["factors"].items()})
        mine = {}
        for factor, layout in of.items():
            if basis is not None and owner == mesh.place:
                tensor = getattr(basis, factor)
                sent: dict[Any, Tensor] = {}
                for place in range(len(mesh.ranks)):
                    block = layout.block(place)
                    if block not in sent:
                        sent[block] = tensor[at(block)].contiguous()
                    if place != owner and count(block):
                        transfers.send(place, sent[block])
                mine[factor] = tensor[at(layout.block())].clone()
            else:
                dtype = notes[owner]["factors"][factor][1]
                mine[factor] = torch.empty(sides(layout.block()), dtype=dtype, device=mesh.device)
                transfers.receive(owner, mine[factor])
        held.append(mine)
    transfers.run()
    return [
        as_shard(weight.scheme.layout, mine, **notes[owner]["origin"]).to(part.device)
        for owner, (weight, part, mine) in enumerate(zip(weights, parts, held))
    ]


class _Transfers:
    """Tensors that go from rank to rank of a mesh, all at once."""

    def __init__(self, mesh: Layout) -> None:
        self._mesh = mesh
        self._pending: list[dist.P2POp] = []

    def send(self, place: int, tensor: Tensor) -> None:
        self._add(dist.isend, place, tensor.to(self._mesh.device).contiguous())

    def receive(self, place: int, tensor: Tensor) -> None:
        """Has run() fill a contiguous tensor; an empty one is not sent."""
        if tensor.numel():
            self._add(dist.irecv, place, tensor)

    def run(self) -> None:
        for work in dist.batch_isend_irecv(self._pending) if self._pending else []:
            work.wait()

    def _add(self, operation: Any, place: int, tensor: Tensor) -> None:
        self._pending.append(dist.P2POp(operation, tensor, self._mesh.ranks[place], group=self._mesh.team))
