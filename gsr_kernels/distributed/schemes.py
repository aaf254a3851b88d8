"""Schemes of GSR for a matrix that is sharded over ranks: what each rank adds to a sum, and what it does with the sum.

Each is arithmetic on the shard ``G [.., m, n]`` of a rank and its shards of the factors; nothing else is exchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from gsr_kernels.basis import SpectralBasis
from gsr_kernels.distributed.layout import Layout, shape_of
from gsr_kernels.methods import GSR, Chain, Method, projections
from gsr_kernels.methods.base import Heads

# G, U and Vh of a rank
Operands = tuple[Tensor, Tensor, Tensor]


def factor_shapes(shape: Sequence[int], k: int) -> dict[str, torch.Size]:
    """Return the shapes of whole U, S and Vh with k directions of matrices ``[.., d1, d2]``."""
    *batch, d1, d2 = shape
    return {"U": torch.Size((*batch, d1, k)), "S": torch.Size((*batch, k)), "Vh": torch.Size((*batch, k, d2))}


@dataclass(frozen=True, eq=False)
class Scheme:
    """A weight's layout, and the arithmetic on its shards."""

    layout: Layout
    # whether it is a wide weight under a scheme for tall ones
    transposed: bool = False
    # whether the directions of a factor that all ranks need are sharded as well, and gathered for use
    gathers: bool = False

    # False where what is gathered is needed after the sum alone
    first: ClassVar[bool] = True

    def factors(self, shapes: Mapping[str, torch.Size]) -> dict[str, Layout]:
        """Return the layouts of U, S and Vh of these whole shapes: batches, U's rows, Vh's columns as the weight's."""
        U, Vh = (-1, -2) if self.gathers else (None, None)
        return {
            "U": self.layout.factor(shapes["U"], True, False, U),
            "S": self.layout.factor(shapes["S"], False, False),
            "Vh": self.layout.factor(shapes["Vh"], False, True, Vh),
        }

    def sums_shape(self, k: int, index: int | None = None) -> tuple[int, ...]:
        """Return the shape of the sum at an index of the mesh, by default of this rank: ``[.., k]``, a diagonal."""
        return (*shape_of(self.layout.block(index))[:-2], k)

    def partial(self, operands: Operands) -> tuple[Tensor, ...]:
        """Return what this rank adds to the sum, and what else it keeps until the sum is there."""
        raise NotImplementedError

    def diagonal(self, sums: Tensor, operands: Operands) -> Tensor:
        """Return the diagonal of N, ``g [.., k]``."""
        return sums

    def rescaled(self, sums: Tensor, kept: Sequence[Tensor], operands: Operands, delta: Tensor) -> Tensor:
        """Return this rank's part of G', as the operands lie."""
        raise NotImplementedError

    def shard(self, sums: Tensor, kept: Sequence[Tensor], operands: Operands, delta: Tensor) -> Tensor:
        """Return this rank's shard of G', as its G came."""
        part = self.rescaled(sums, kept, operands, delta)
        return self.layout.from_matrix(part.mT if self.transposed else part)

    def operands(self, G: Tensor, basis: SpectralBasis) -> Operands:
        """Return ``(G, U, Vh)`` in the dtype of the products, transposed where the scheme is."""
        # a sum of 16-bit products would be rounded before it is sent, or overflow
        G = self.layout.as_matrix(G)
        G, U, Vh = projections.operands(G.to(torch.promote_types(G.dtype, basis.S.dtype)), basis)
        return (G.mT, Vh.mT, U.mT) if self.transposed else (G, U, Vh)


class Whole(Scheme):
    """Whole matrices on each rank, replicas or experts of its own: nothing is exchanged, every method is supported."""


class Diagonal(Scheme):
    """``G + U diag(δ) Vh`` on any shard: what the bases do not span stays, or there is nothing that they do not."""

    def partial(self, operands: Operands) -> tuple[Tensor, ...]:
        G, U, Vh = operands
        if G.shape[-2] > G.shape[-1]:
            G, U, Vh = G.mT, Vh.mT, U.mT
        return ((G @ Vh.mT).mul_(U).sum(-2),)

    def rescaled(self, sums: Tensor, kept: Sequence[Tensor], operands: Operands, delta: Tensor) -> Tensor:
        G, U, Vh = operands
        return G + (U * delta.unsqueeze(-2)) @ Vh


class ShortSide(Scheme):
    """``U (Uᵀ G + diag(δ) Vh)`` of a tall weight sharded in columns: every rank holds all of U."""

    def partial(self, operands: Operands) -> tuple[Tensor, ...]:
        G, U, Vh = operands
        A = U.mT @ G
        return (A * Vh).sum(-1), A

    def rescaled(self, sums: Tensor, kept: Sequence[Tensor], operands: Operands, delta: Tensor) -> Tensor:
        _, U, Vh = operands
        (A,) = kept or (sums,)
        return U @ A.addcmul(delta.unsqueeze(-1), Vh)


class LongSide(ShortSide):
    """The same of a tall weight sharded in rows: Uᵀ G, ``[.., k, d2]``, is summed."""

    first = False

    def sums_shape(self, k: int, index: int | None = None) -> tuple[int, ...]:
        return (*super().sums_shape(k, index), self.layout.shape[-2 if self.transposed else -1])

    def partial(self, operands: Operands) -> tuple[Tensor, ...]:
        G, U, _ = operands
        return (U.mT @ G,)

    def diagonal(self, sums: Tensor, operands: Operands) -> Tensor:
        return (sums * operands[2]).sum(-1)


class Core(Scheme):
    """``U (N + diag(δ)) Vh`` on any shard: N, ``[.., k, k]``, is summed."""

    def sums_shape(self, k: int, index: int | None = None) -> tuple[int, ...]:
        return (*super().sums_shape(k, index), k)

    def partial(self, operands: Operands) -> tuple[Tensor, ...]:
        G, U, Vh = operands
        return ((U.mT @ G) @ Vh.mT,)

    def diagonal(self, sums: Tensor, operands: Operands) -> Tensor:
        return sums.diagonal(dim1=-2, dim2=-1)

    def rescaled(self, sums: Tensor, kept: Sequence[Tensor], operands: Operands, delta: Tensor) -> Tensor:
        _, U, Vh = operands
        return U @ ((sums + delta.diag_embed()) @ Vh)


def choose_scheme(name: str, method: Method, layout: Layout, k: int, heads: Heads, shard_bases: bool) -> Scheme:
    """Return the scheme of least traffic for a weight with k directions, which gathers if ``shard_bases``.

    Raises, by name, for a sharded weight: TypeError for a method that needs whole matrices, ValueError for heads.
    """
    if heads is not None and layout.mesh_dims():
        parts = heads[0] if isinstance(heads, Sequence) else heads
        raise ValueError(
            f"heads: {name} is taken in {parts} parts, with a basis each, and "
            f"is sharded over ranks ({layout.placed}), which need not split between them. Leave it out of heads= "
            "or, where it is q, k and v in one, out of targets=; or keep it whole (fully_shard's ignored_params)"
        )
    names = " and ".join(type(one).__name__ for one in (method.methods if isinstance(method, Chain) else (method,)))
    if not layout.shards_matrices:
        if layout.shards_batch and method.lasting:
            raise TypeError(
                f"method: {names} keeps what a checkpoint must hold, and of {name} each rank has matrices of its own "
                f"({layout.placed}), which no checkpoint tells apart. Replicate them, or leave them out of targets="
            )
        return Whole(layout)
    if layout.flat and len(layout.shape) > 2:
        raise ValueError(
            f"targets: {name} holds several matrices in one parameter, {tuple(layout.shape)}. An engine that flattens "
            "weights gives each rank an interval of them: leave it out of targets=, or shard it by fully_shard (FSDP2)"
        )
    if type(method) is not GSR:
        raise TypeError(
            f"method: {names} needs whole matrices, and {name} is sharded over ranks ({layout.placed}); GSR alone "
            "is supported there. Train replicas (DistributedDataParallel), or choose targets= that are not sharded"
        )
    return replace(_choose(method, layout, k), gathers=shard_bases)


def _choose(method: GSR, layout: Layout, k: int) -> Scheme:
    d1, d2 = layout.shape[-2:]
    whole = k == min(d1, d2)
    if method.out_of_span == "keep" or (whole and d1 == d2):
        return Diagonal(layout)
    wide = d1 < d2
    rows, columns = bool(layout.mesh_dims(-2)), bool(layout.mesh_dims(-1))
    long, short = (columns, rows) if wide else (rows, columns)
    # of a row that two ranks share neither knows the part that it would keep
    if not whole or (long and short) or layout.flat:
        return Core(layout)
    return LongSide(layout, wide) if long else ShortSide(layout, wide)
