"""Randomized bases of weights that are sharded over ranks, found from the shards.

``randomized_svd`` with its terms summed over ranks: what is as long as a side of the weight is sharded as that side,
and what is as short as the sketch is wide is the same on every rank, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from gsr_kernels.backends.torch.products import full_precision, product, times_power_of_two
from gsr_kernels.backends.torch.sketch import omega_rows
from gsr_kernels.basis import SpectralBasis, storage_dtype
from gsr_kernels.distributed.agreement import run_on_all_ranks
from gsr_kernels.distributed.layout import Layout, shape_of
from gsr_kernels.distributed.schemes import factor_shapes
from gsr_kernels.distributed.shard import as_shard
from gsr_kernels.linalg import svd
from gsr_kernels.linalg.cholesky_qr import QR, cholesky_qr, householder, normalized
from gsr_kernels.linalg.randomized_svd import defaults
from gsr_kernels.linalg.scaling import unscaled
from gsr_kernels.weight import Weight, origin

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# of randomized_svd
SEED = 0

# rows of Ω that are drawn at once
STRIP = 128


def is_from_shards(weight: Weight) -> bool:
    """Return True if a weight's basis is found from its shards: by a sketch narrower than its short side."""
    layout = weight.scheme.layout
    if weight.rank is None or not weight.randomized or not layout.shards_matrices or layout.shards_batch or layout.flat:
        return False
    most = min(layout.shape[-2:])
    return weight.rank + defaults(weight.rank, most)[0] < most


def basis_from_shards(weight: Weight) -> SpectralBasis:
    """Return this rank's shard of a randomized basis; ValueError, on all ranks, for NaN, Inf or a σ that overflows."""
    layout, shard = weight.scheme.layout, weight.held
    wide = torch.float64 if shard.dtype == torch.float64 else torch.float32
    try:
        with full_precision(shard.device), torch.no_grad():
            W, exponent = _finite_and_scaled(shard.to(wide), layout)
            U, S, Vh = _sketched(W, layout, weight.rank or 0)
            S = unscaled(S, exponent)
    except (ValueError, torch.linalg.LinAlgError) as error:
        raise ValueError(f"{weight.name}: {error}") from error
    storage = storage_dtype(weight.precision, wide, shard.device)
    # the shards of factors that are whole here
    layouts = weight.scheme.factors(factor_shapes(layout.shape, S.shape[-1]))
    U, Vh = U[..., slice(*layouts["U"].block()[-1])], Vh[..., slice(*layouts["Vh"].block()[-2]), :]
    factors = {"U": U.to(storage).contiguous(), "S": S.contiguous(), "Vh": Vh.to(storage).contiguous()}
    return as_shard(layout, factors, origin(weight), None, True)


def _finite_and_scaled(W: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Return the weight scaled by the largest element on any rank, and the exponent; see ``linalg.scaling``."""
    largest = W.new_zeros(*shape_of(layout.block())[:-2], 1, 1)
    if W.numel():
        largest = torch.maximum(W.amax((-2, -1), keepdim=True), -W.amin((-2, -1), keepdim=True))
        largest = largest.nan_to_num(torch.inf, torch.inf)
    shared = largest.to(layout.device)
    dist.all_reduce(shared, dist.ReduceOp.MAX, group=layout.group)
    if not shared.isfinite().all():
        raise ValueError("weight holds NaN or Inf: it has no singular basis; restore it from a checkpoint")
    exponent = shared.to(W.device).frexp().exponent
    return times_power_of_two(W, -exponent), exponent.squeeze(-1)


def _sketched(W: Tensor, layout: Layout, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return shards of U and Vh, and S, of W's projection on the range of its sketch: ``randomized_svd`` by default."""
    rows, columns = _Side(layout, -2), _Side(layout, -1)
    p, q = defaults(rank, min(layout.shape[-2:]))
    Y = columns.summed(_sketch(W, columns.start, layout.shape[-1], rank + p))
    for _ in range(q):
        Y = columns.summed(product(W, rows.summed(product(W.mT, normalized(Y, rows.gram, rows.orthonormal)))))
    Q = rows.orthonormal(Y)
    V, R = columns.qr(rows.summed(product(W.mT, Q)))
    # W ≈ Q (V R)ᵀ; of the drivers each machine takes the one that it timed as the fastest
    A, S, Bh = (
        _through([layout.group], factor, layout, _from_first) for factor in run_on_all_ranks(lambda: svd(R), [layout])
    )
    U, V = product(Q, Bh[..., :rank, :].mT), product(V, A[..., :rank])
    return rows.equal(U), S[..., :rank], columns.equal(V).mT


def _sketch(W: Tensor, start: int, count: int, width: int) -> Tensor:
    """Return ``W Ω`` of the columns of a weight that begin at ``start``, of ``count`` in all."""
    Y = W.new_zeros(*W.shape[:-1], width)
    # drawing takes several int64 for each element
    for low in range(0, W.shape[-1], STRIP):
        strip = W[..., low : low + STRIP]
        rows = omega_rows(start + low, start + low + strip.shape[-1], count, width, SEED, W.device)
        Y += product(strip, rows.to(W.dtype))
    return Y


class _Side:
    """The rows, or columns, of a weight on its ranks, and tall matrices whose rows are sharded as they are."""

    def __init__(self, layout: Layout, dim: int) -> None:
        self._layout = layout
        self.start, self.stop = layout.block()[dim]
        # (start, stop) of each of its shards, in order
        self._bounds = sorted({layout.block(index)[dim] for index in range(len(layout.ranks))})
        sharding = layout.mesh_dims(dim)
        groups = [(i in sharding, layout.mesh.get_group(i)) for i in range(layout.mesh.ndim) if layout.mesh.size(i) > 1]
        self._sharding = [group for shards, group in groups if shards]
        self._replicating = [group for shards, group in groups if not shards]
        self._several = [layout.group] if len(groups) > 1 else []

    def summed(self, term: Tensor) -> Tensor:
        """Return the sum of the terms that the shards of this side have."""
        return _through(self._sharding, term, self._layout, _add)

    def equal(self, shard: Tensor) -> Tensor:
        """Return the shard of the first rank among those that hold the same one of this side."""
        return _through(self._replicating, shard, self._layout, _from_first)

    def gram(self, Y: Tensor) -> Tensor:
        """Return the first rank's ``YᵀY``: groups may round a sum each in its own way, and branches depend on it."""
        return _through(self._several, self.summed(product(Y.mT, Y)), self._layout, _from_first)

    def qr(self, Y: Tensor) -> QR:
        """Return this rank's rows of Q, and R."""
        return cholesky_qr(Y, self.gram, self._householder)

    def orthonormal(self, Y: Tensor) -> Tensor:
        """Return this rank's rows of Q."""
        return self.qr(Y).Q

    def _householder(self, Y: Tensor) -> QR:
        """Return QR from that of each shard, and of their R one upon the other: TSQR (Demmel et al., SISC 34, 2012)."""
        heights = [min(stop - start, Y.shape[-1]) for start, stop in self._bounds]
        mine = self._bounds.index((self.start, self.stop))
        rows = slice(sum(heights[:mine]), sum(heights[: mine + 1]))
        Q, R = householder(self.equal(Y))
        stack = Y.new_zeros(*Y.shape[:-2], sum(heights), Y.shape[-1])
        stack[..., rows, :] = R
        # sums with zeros are the same in all groups
        above, R = householder(self.summed(stack))
        return QR(Q @ above[..., rows, :], R)


def _through(
    groups: Sequence[ProcessGroup], tensor: Tensor, layout: Layout, call: Callable[[Tensor, ProcessGroup], object]
) -> Tensor:
    """Return a tensor after collectives in one group after the other."""
    sent = tensor.to(layout.device).contiguous()
    for group in groups:
        call(sent, group)
    return sent.to(tensor.device)


def _add(tensor: Tensor, group: ProcessGroup) -> None:
    dist.all_reduce(tensor, group=group)


def _from_first(tensor: Tensor, group: ProcessGroup) -> None:
    dist.broadcast(tensor, group_src=0, group=group)
