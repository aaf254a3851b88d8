"""Bases of experts that lie whole on their ranks: each rank decomposes those that it holds, replicas share the work."""

from __future__ import annotations

import torch
from torch import Tensor

from gsr_kernels.basis import SpectralBasis
from gsr_kernels.distributed.layout import Layout
from gsr_kernels.distributed.shard import as_shard
from gsr_kernels.distributed.transfers import Transfers, met
from gsr_kernels.io.bases_file import FACTORS
from gsr_kernels.weight import Weight, decompose_one, origin


def whole_experts(weight: Weight) -> bool:
    """Whether a weight is several matrices, each whole where it lies, that can be decomposed one apart from another."""
    layout = weight.scheme.layout
    return len(layout.shape) > 2 and not layout.matrices_cut and not weight.method.basis_kind


def basis_of_experts(weight: Weight, part: Tensor) -> SpectralBasis:
    """The basis of the matrices ``part [n, .., d1, d2]`` that this rank holds; all ranks of its mesh must call it.

    Those that hold the same ones decompose an equal number each and send it to the others, so that all have the same
    bits. Raises as ``met``.
    """
    layout = weight.scheme.layout
    shares = _shares(layout)
    mine = shares[layout.place]
    decomposed, notes = met(layout, lambda: decompose_one(weight, part[mine]) if len(part[mine]) else None)
    # a rank may hold none
    note = next(note for note in notes if note)
    factors = {}
    for factor in FACTORS:
        own, (shape, dtype) = decomposed.pop(factor, None), note[factor]
        if own is not None and len(own) == len(part):
            factors[factor] = own.to(layout.device)
            continue
        factors[factor] = torch.empty((len(part), *shape[1:]), dtype=dtype, device=layout.device)
        if own is not None:
            factors[factor][mine] = own.to(layout.device)
    transfers = Transfers(layout)
    for place, others in shares.items():
        if place != layout.place:
            for whole in factors.values():
                if len(whole[mine]):
                    transfers.send(place, whole[mine])
                transfers.receive(place, whole[others])
    transfers.run()
    known = {**note["origin"], "fingerprint": origin(weight, part)}
    return as_shard(layout, factors, **known).to(part.device)


def _shares(layout: Layout) -> dict[int, slice]:
    """Of this rank's matrices, those that each place which holds them decomposes."""
    block = layout.block()
    places = [place for place in range(len(layout.ranks)) if layout.block(place) == block]
    count, start = block[0][1] - block[0][0], 0
    shares = {}
    for i, place in enumerate(places):
        # as even as can be
        stop = count * (i + 1) // len(places)
        shares[place], start = slice(start, stop), stop
    return shares
