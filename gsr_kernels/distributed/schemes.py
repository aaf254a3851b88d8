"""How GSR meets a matrix that is cut over ranks: what each adds to a sum, and what each does with the sum.

One class a scheme. Each is arithmetic on the piece ``G [.., m, n]`` of a rank and the pieces of the factors that it
holds; none knows where the others are. The sum over all pieces is the only thing that they exchange.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from gsr_kernels.basis import SpectralBasis
from gsr_kernels.distributed.layout import Layout, sides
from gsr_kernels.methods import GSR, Chain, Method
from gsr_kernels.methods.base import Heads
from gsr_kernels.methods.projections import operands

Pieces = tuple[Tensor, Tensor, Tensor]


def factor_shapes(shape: Sequence[int], k: int) -> dict[str, torch.Size]:
    """Of whole U, S and Vh with k directions of matrices ``[.., d1, d2]``."""
    *batch, d1, d2 = shape
    return {"U": torch.Size((*batch, d1, k)), "S": torch.Size((*batch, k)), "Vh": torch.Size((*batch, k, d2))}


@dataclass(frozen=True, eq=False)
class Scheme:
    """A weight's layout, and what its pieces share.

    ``lying`` is set for a wide weight under a scheme that is told of tall ones: all is transposed. ``gathers`` says
    that ranks share the directions of a factor that all of them need, and gather it when they do.
    """

    layout: Layout
    lying: bool = False
    gathers: bool = False

    # whether what is gathered is needed before the sum
    first: ClassVar[bool] = True

    def factors(self, shapes: Mapping[str, torch.Size]) -> dict[str, Layout]:
        """Where U, S and Vh of these whole shapes lie: cut as the weight is, in batches, U's rows and Vh's columns."""
        U, Vh = (-1, -2) if self.gathers else (None, None)
        return {
            "U": self.layout.part(shapes["U"], True, False, U),
            "S": self.layout.part(shapes["S"], False, False),
            "Vh": self.layout.part(shapes["Vh"], False, True, Vh),
        }

    def sums_shape(self, k: int, place: int | None = None) -> tuple[int, ...]:
        """The shape of what the rank at a place of the mesh, this rank by default, sums: ``[.., k]``, a diagonal."""
        return (*sides(self.layout.block(place))[:-2], k)

    def partial(self, pieces: Pieces) -> tuple[Tensor, ...]:
        """What this rank adds to the sum, and what else it keeps until the sum is there."""
        raise NotImplementedError

    def diagonal(self, sums: Tensor, pieces: Pieces) -> Tensor:
        """The diagonal of N, ``g [.., k]``."""
        return sums

    def rescaled(self, sums: Tensor, kept: Sequence[Tensor], pieces: Pieces, delta: Tensor) -> Tensor:
        """This rank's piece of G'."""
        raise NotImplementedError

    def pieces(self, G: Tensor, basis: SpectralBasis) -> Pieces:
        """``(G, U, Vh)`` in the dtype of the products, standing upright."""
        # a sum of 16-bit products would be rounded before it is sent, or overflow
        G, U, Vh = operands(G.to(torch.promote_types(G.dtype, basis.S.dtype)), basis)
        return (G.mT, Vh.mT, U.mT) if self.lying else (G, U, Vh)


class Whole(Scheme):
    """Each rank has whole matrices, replicas or experts of its own: nothing is exchanged, every method is served."""


class Diagonal(Scheme):
    """``G + U diag(δ) Vh`` on any piece: what the bases do not span stays, or there is nothing that they do not."""

    def partial(self, pieces: Pieces) -> tuple[Tensor, ...]:
        G, U, Vh = pieces
        if G.shape[-2] > G.shape[-1]:
            G, U, Vh = G.mT, Vh.mT, U.mT
        return ((G @ Vh.mT).mul_(U).sum(-2),)

    def rescaled(self, sums: Tensor, kept: Sequence[Tensor], pieces: Pieces, delta: Tensor) -> Tensor:
        G, U, Vh = pieces
        return G + (U * delta.unsqueeze(-2)) @ Vh


class ShortSide(Scheme):
    """``U (Uᵀ G + diag(δ) Vh)`` of a tall weight cut in columns: every rank holds all of U."""

    def partial(self, pieces: Pieces) -> tuple[Tensor, ...]:
        G, U, Vh = pieces
        A = U.mT @ G
        return (A * Vh).sum(-1), A

    def rescaled(self, sums: Tensor, kept: Sequence[Tensor], pieces: Pieces, delta: Tensor) -> Tensor:
        _, U, Vh = pieces
        return U @ kept[0].addcmul_(delta.unsqueeze(-1), Vh)


class LongSide(Scheme):
    """The same of a tall weight cut in rows: Uᵀ G, ``[.., k, d2]``, is summed."""

    first = False

    def sums_shape(self, k: int, place: int | None = None) -> tuple[int, ...]:
        return (*super().sums_shape(k, place), self.layout.shape[-2 if self.lying else -1])

    def partial(self, pieces: Pieces) -> tuple[Tensor, ...]:
        G, U, _ = pieces
        return (U.mT @ G,)

    def diagonal(self, sums: Tensor, pieces: Pieces) -> Tensor:
        return (sums * pieces[2]).sum(-1)

    def rescaled(self, sums: Tensor, kept: Sequence[Tensor], pieces: Pieces, delta: Tensor) -> Tensor:
        _, U, Vh = pieces
        return U @ sums.addcmul(delta.unsqueeze(-1), Vh)


class Core(Scheme):
    """``U (N + diag(δ)) Vh`` on any piece: N, ``[.., k, k]``, is summed."""

    def sums_shape(self, k: int, place: int | None = None) -> tuple[int, ...]:
        return (*super().sums_shape(k, place), k)

    def partial(self, pieces: Pieces) -> tuple[Tensor, ...]:
        G, U, Vh = pieces
        return ((U.mT @ G) @ Vh.mT,)

    def diagonal(self, sums: Tensor, pieces: Pieces) -> Tensor:
        return sums.diagonal(dim1=-2, dim2=-1)

    def rescaled(self, sums: Tensor, kept: Sequence[Tensor], pieces: Pieces, delta: Tensor) -> Tensor:
        _, U, Vh = pieces
        return U @ ((sums + delta.diag_embed()) @ Vh)


def choose_scheme(name: str, method: Method, layout: Layout, k: int, heads: Heads, shard_bases: bool) -> Scheme:
    """The scheme that serves a weight of this layout with k directions at the least traffic.

    With ``shard_bases`` it holds no factor whole, and gathers.

    Raises, by name, on a weight that is cut: TypeError for a method that needs whole matrices, ValueError for heads.
    """
    if heads is not None and layout.cuts():
        raise ValueError(
            f"heads: {name} is taken in {heads if isinstance(heads, int) else heads[0]} parts, with a basis each, and "
            f"is cut over ranks ({layout.placements}), which need not cut between them. Leave it out of heads= or, "
            "where it is q, k and v in one, out of targets=; or keep it whole (fully_shard's ignored_params)"
        )
    names = " and ".join(type(one).__name__ for one in (method.methods if isinstance(method, Chain) else (method,)))
    if not layout.matrices_cut:
        if layout.dealt and method.lasting:
            raise TypeError(
                f"method: {names} keeps what a checkpoint must hold, and of {name} each rank has matrices of its own "
                f"({layout.placements}), which no checkpoint tells apart. Replicate them, or leave them out of targets="
            )
        return Whole(layout)
    if type(method) is not GSR:
        raise TypeError(
            f"method: {names} needs whole matrices, and {name} is cut over ranks ({layout.placements}); "
            "GSR alone is served there. Train replicas (DistributedDataParallel), or choose targets= that are not cut"
        )
    return replace(_choose(method, layout, k), gathers=shard_bases)


def _choose(method: GSR, layout: Layout, k: int) -> Scheme:
    d1, d2 = layout.shape[-2:]
    whole = k == min(d1, d2)
    if method.out_of_span == "keep" or (whole and d1 == d2):
        return Diagonal(layout)
    wide = d1 < d2
    rows, columns = bool(layout.cuts(-2)), bool(layout.cuts(-1))
    long, short = (columns, rows) if wide else (rows, columns)
    if not whole or (long and short):
        return Core(layout)
    return LongSide(layout, wide) if long else ShortSide(layout, wide)
