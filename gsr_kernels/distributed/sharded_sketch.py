"""Randomized bases of weights that are cut over ranks, found from the pieces where they lie.

``randomized_svd`` with its terms summed over ranks: what is as long as a side of the weight lies as that side does, and
what is as short as the sketch is wide is the same on every rank, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from gsr_kernels.backends.torch.sketch import omega_rows
from gsr_kernels.basis import SpectralBasis, storage_dtype
from gsr_kernels.distributed.layout import Layout, sides, together
from gsr_kernels.distributed.schemes import factor_shapes
from gsr_kernels.distributed.shard import as_shard
from gsr_kernels.linalg import svd
from gsr_kernels.linalg.cholesky_qr import QR, cholesky_qr, householder, normalized
from gsr_kernels.linalg.precision import full_precision
from gsr_kernels.linalg.products import product
from gsr_kernels.linalg.randomized_svd import defaults
from gsr_kernels.linalg.scaling import unscaled
from gsr_kernels.weight import Weight, origin

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# of randomized_svd
SEED = 0

# rows of Ω that are drawn at once
STRIP = 128


def from_pieces(weight: Weight) -> bool:
    """Whether a weight's basis is found without the weight being whole anywhere.

    A sketch as wide as its short side would take in all of it: ``randomized_svd`` decomposes that exactly.
    """
    layout = weight.scheme.layout
    if weight.rank is None or not weight.randomized or not layout.matrices_cut or layout.dealt:
        return False
    most = min(layout.shape[-2:])
    return weight.rank + defaults(weight.rank, most)[0] < most


def basis_from_pieces(weight: Weight, part: Tensor) -> SpectralBasis:
    """This rank's part of a weight's randomized basis, from its part of the weight; all ranks of its mesh must call.

    Raises ValueError by its name, on every rank, where the weight holds NaN or Inf or a σ overflows.
    """
    layout = weight.scheme.layout
    wide = torch.float64 if part.dtype == torch.float64 else torch.float32
    try:
        with full_precision(part.device), torch.no_grad():
            W, exponent = _finite_and_scaled(part.detach().to(wide), layout)
            U, S, Vh = _sketched(W, layout, weight.rank or 0)
            S = unscaled(S, exponent)
    except (ValueError, torch.linalg.LinAlgError) as error:
        raise ValueError(f"{weight.name}: {error}") from error
    storage = storage_dtype(None, wide, part.device)
    # what the ranks share of factors that are whole here
    places = weight.scheme.factors(factor_shapes(layout.shape, S.shape[-1]))
    U, Vh = U[..., slice(*places["U"].block()[-1])], Vh[..., slice(*places["Vh"].block()[-2]), :]
    factors = {"U": U.to(storage).contiguous(), "S": S.contiguous(), "Vh": Vh.to(storage).contiguous()}
    return as_shard(layout, factors, origin(weight, part), None, True)


def _finite_and_scaled(W: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """See ``linalg.scaling``: the largest number decides, wherever it lies."""
    largest = W.new_zeros(*sides(layout.block())[:-2], 1, 1)
    if W.numel():
        largest = torch.maximum(W.amax((-2, -1), keepdim=True), -W.amin((-2, -1), keepdim=True))
        largest = largest.nan_to_num(torch.inf, torch.inf)
    shared = largest.to(layout.device)
    dist.all_reduce(shared, dist.ReduceOp.MAX, group=layout.team)
    if not shared.isfinite().all():
        raise ValueError("weight holds NaN or Inf: it has no singular basis; restore it from a checkpoint")
    exponent = shared.to(W.device).frexp().exponent
    return torch.ldexp(W, -exponent), exponent.squeeze(-1)


def _sketched(W: Tensor, layout: Layout, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Parts of U and Vh, and S, of the projection of W on the range of its sketch: ``randomized_svd`` by default."""
    rows, columns = _Side(layout, -2), _Side(layout, -1)
    p, q = defaults(rank, min(layout.shape[-2:]))
    Y = columns.summed(_sketch(W, columns.start, layout.shape[-1], rank + p))
    for _ in range(q):
        Y = columns.summed(product(W, rows.summed(product(W.mT, normalized(Y, rows.gram, rows.orthonormal)))))
    Q = rows.orthonormal(Y)
    V, R = columns.qr(rows.summed(product(W.mT, Q)))
    # W ≈ Q (V R)ᵀ; of the drivers each machine takes the one that it timed as the fastest
    A, S, Bh = (_through([layout.team], factor, layout, _from_first) for factor in together(lambda: svd(R), [layout]))
    U, V = product(Q, Bh[..., :rank, :].mT), product(V, A[..., :rank])
    return rows.alike(U), S[..., :rank], columns.alike(V).mT


def _sketch(W: Tensor, start: int, count: int, width: int) -> Tensor:
    """``W Ω`` of the columns of a weight that begin at ``start``, of ``count`` in all."""
    Y = W.new_zeros(*W.shape[:-1], width)
    # drawing takes several int64 for each number
    for low in range(0, W.shape[-1], STRIP):
        strip = W[..., low : low + STRIP]
        rows = omega_rows(start + low, start + low + strip.shape[-1], count, width, SEED, W.device)
        Y += product(strip, rows.to(W.dtype))
    return Y


class _Side:
    """The rows, or columns, of a weight on its ranks, and tall matrices whose rows lie as they do."""

    def __init__(self, layout: Layout, dim: int) -> None:
        self._layout = layout
        self.start, self.stop = layout.block()[dim]
        # every piece of it, in order
        self._pieces = sorted({layout.block(place)[dim] for place in range(len(layout.ranks))})
        cuts = layout.cuts(dim)
        groups = [(i in cuts, layout.mesh.get_group(i)) for i in range(layout.mesh.ndim) if layout.mesh.size(i) > 1]
        self._cut = [group for cut, group in groups if cut]
        self._copied = [group for cut, group in groups if not cut]
        self._several = [layout.team] if len(groups) > 1 else []

    def summed(self, term: Tensor) -> Tensor:
        """The sum of the terms that the pieces of this side have."""
        return _through(self._cut, term, self._layout, _add)

    def alike(self, piece: Tensor) -> Tensor:
        """The first one's of those ranks that have the same piece of this side."""
        return _through(self._copied, piece, self._layout, _from_first)

    def gram(self, Y: Tensor) -> Tensor:
        """``YᵀY``, the first rank's: groups may round a sum each in its own way, and what follows branches by it."""
        return _through(self._several, self.summed(product(Y.mT, Y)), self._layout, _from_first)

    def qr(self, Y: Tensor) -> QR:
        """This rank's rows of Q, and R."""
        return cholesky_qr(Y, self.gram, self._householder)

    def orthonormal(self, Y: Tensor) -> Tensor:
        """This rank's rows of Q."""
        return self.qr(Y).Q

    def _householder(self, Y: Tensor) -> QR:
        """QR of each piece, and of their R one upon the other (Demmel, Grigori, Hoemmen, Langou: Communication-optimal
        parallel and sequential QR and LU factorizations, SIAM J. Sci. Comput. 34, 2012)."""
        heights = [min(stop - start, Y.shape[-1]) for start, stop in self._pieces]
        mine = self._pieces.index((self.start, self.stop))
        rows = slice(sum(heights[:mine]), sum(heights[: mine + 1]))
        Q, R = householder(self.alike(Y))
        stack = Y.new_zeros(*Y.shape[:-2], sum(heights), Y.shape[-1])
        stack[..., rows, :] = R
        # to zeros all groups add alike
        above, R = householder(self.summed(stack))
        return QR(Q @ above[..., rows, :], R)


def _through(
    groups: Sequence[ProcessGroup], tensor: Tensor, layout: Layout, call: Callable[[Tensor, ProcessGroup], object]
) -> Tensor:
    """What collectives in one group after the other make of a tensor."""
    carried = tensor.to(layout.device).contiguous()
    for group in groups:
        call(carried, group)
    return carried.to(tensor.device)


def _add(tensor: Tensor, group: ProcessGroup) -> None:
    dist.all_reduce(tensor, group=group)


def _from_first(tensor: Tensor, group: ProcessGroup) -> None:
    dist.broadcast(tensor, group_src=0, group=group)
