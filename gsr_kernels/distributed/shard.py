"""The part of a weight's basis that one rank holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gsr_kernels.basis import SpectralBasis, bit_sum, fingerprint, label
from gsr_kernels.distributed.layout import Layout
from gsr_kernels.io.bases_file import FACTORS


@dataclass(frozen=True, eq=False)
class BasisShard(SpectralBasis):
    """Rows of U, S, and columns of Vh, of the basis of a weight of shape ``whole``; either factor may be all of it.

    An empty part is one. ``shape`` and ``rank`` are those of the weight's whole basis, ``nbytes`` what lies here.
    """

    whole: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """The factors come from a basis that was checked whole."""

    @property
    def shape(self) -> torch.Size:
        """``[.., d1, d2]`` of the whole weight."""
        return torch.Size(self.whole)

    def split(self, weight: Tensor) -> Tensor:
        """A rank's part of a weight or gradient is its own matrix."""
        return weight


def as_shard(
    layout: Layout, parts: Mapping[str, Tensor], fingerprint: str | None, head_dim: int | None, randomized: bool
) -> SpectralBasis:
    """The parts of factors that a rank holds; an ordinary basis where matrices are whole."""
    U, S, Vh = (parts[factor] for factor in FACTORS)
    if layout.matrices_cut:
        return BasisShard(U, S, Vh, fingerprint, randomized=randomized, whole=layout.shape)
    return SpectralBasis(U, S, Vh, fingerprint, head_dim, randomized)


def origin_of(basis: SpectralBasis) -> dict[str, Any]:
    """What there is to know of a basis beside its factors."""
    return {"fingerprint": basis.fingerprint, "head_dim": basis.head_dim, "randomized": basis.randomized}


def fingerprint_of_parts(part: Tensor, layout: Layout) -> str:
    """``fingerprint`` of the weight whose parts the ranks of a layout hold; all of them must ask."""
    if not layout.cuts():
        return fingerprint(part)
    block = layout.block()
    # of replicas one counts
    counts = layout.holders().get(block) == layout.place
    total = bit_sum(part, [start for start, _ in block], layout.shape) if counts else 0
    # int64 wraps as the sum modulo 2^64 does
    total -= (total >> 63) << 64
    sums = torch.tensor(total, dtype=torch.int64, device=layout.device)
    dist.all_reduce(sums, group=layout.team)
    return label(part.dtype, layout.shape, int(sums) % 2**64)
