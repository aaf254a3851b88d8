"""What the ranks of a mesh tell and send each other about weights that single ranks decompose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gsr_kernels.basis import SpectralBasis
from gsr_kernels.distributed.layout import Layout, at, count, sides
from gsr_kernels.distributed.shard import origin_of
from gsr_kernels.io.bases_file import FACTORS

# of a basis: the shape and dtype of each factor, and its origin; empty where a rank has none
Note = dict[str, Any]


def met(mesh: Layout, decompose: Callable[[], SpectralBasis | None]) -> tuple[dict[str, Tensor], list[Note]]:
    """The factors of the basis that this rank decomposes, and what is to be known of each rank's, in the mesh's order.

    Raises ValueError, on every rank, where one cannot decompose its weight; RuntimeError where its memory is too small.
    """
    factors: dict[str, Tensor] = {}
    note = Note()
    try:
        basis = decompose()
        if basis is not None:
            factors = {factor: getattr(basis, factor) for factor in FACTORS}
            note = {factor: (tensor.shape, tensor.dtype) for factor, tensor in factors.items()}
            note["origin"] = origin_of(basis)
    except Exception as error:
        note = {"error": str(error), "kind": ValueError if isinstance(error, ValueError) else RuntimeError}
    told: list[Any] = [None] * len(mesh.ranks)
    dist.all_gather_object(told, (mesh.place, note), group=mesh.team)
    by_place = dict(told)
    for found in by_place.values():
        if "error" in found:
            raise found["kind"](found["error"])
    return factors, [by_place[place] for place in range(len(told))]


def gather(layouts: Sequence[Layout], parts: Sequence[Tensor]) -> Tensor | None:
    """The i-th weight whole on the i-th rank, of the parts that the ranks hold; None on a rank for which there is none.

    Beside it a rank holds no more than one part that is on its way.
    """
    mesh = layouts[0]
    blocks = [{place: block for block, place in layout.holders().items()} for layout in layouts]
    whole = None
    if mesh.place < len(layouts):
        layout, part = layouts[mesh.place], parts[mesh.place]
        whole = torch.empty(layout.shape, dtype=part.dtype, device=mesh.device)
        whole[at(layout.block())] = part.detach().to(mesh.device)
    for before, after in _turns(mesh):
        transfers = Transfers(mesh)
        if before < len(layouts) and _needed(blocks[before].get(mesh.place), layouts[before].block(before)):
            transfers.send(before, parts[before].detach())
        target = arriving = None
        if whole is not None and _needed(blocks[mesh.place].get(after), layout.block()):
            target = whole[at(blocks[mesh.place][after])]
            # rows arrive where they belong, columns beside it
            arriving = target if target.is_contiguous() else torch.empty_like(target).contiguous()
            transfers.receive(after, arriving)
        transfers.run()
        if target is not None and arriving is not None and arriving is not target:
            target.copy_(arriving)
    return whole


def scatter(layouts: Sequence[Layout], own: Tensor | None, dtypes: Sequence[torch.dtype]) -> list[Tensor]:
    """This rank's parts of the i-th rank's tensor, which lies as the i-th layout says; ``own`` is this rank's.

    Beside it a rank holds no more than those parts and one that is on its way.
    """
    mesh = layouts[0]
    parts = []
    for place, (layout, dtype) in enumerate(zip(layouts, dtypes)):
        if own is None or place != mesh.place:
            parts.append(torch.empty(sides(layout.block()), dtype=dtype, device=mesh.device))
        else:
            part = own[at(layout.block())]
            # a view would keep the rest
            parts.append(part if part.shape == own.shape else part.clone())
    for before, after in _turns(mesh):
        transfers = Transfers(mesh)
        if own is not None:
            block = layouts[mesh.place].block(after)
            if count(block):
                transfers.send(after, own[at(block)])
        if before < len(layouts):
            transfers.receive(before, parts[before])
        transfers.run()
    return parts


class Transfers:
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


def _turns(mesh: Layout) -> list[tuple[int, int]]:
    """The places as far before this rank's as the other is after it, nearest first: each rank meets each other once."""
    count = len(mesh.ranks)
    return [((mesh.place - far) % count, (mesh.place + far) % count) for far in range(1, count)]


def _needed(block: Any, own: Any) -> bool:
    """Whether a rank that has ``own`` lacks a block that another holds first."""
    return block is not None and block != own
