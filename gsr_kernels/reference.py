"""Gradient Spectrum Rescaling as the paper writes it: a function an equation, the oracle of every backend.

Shapes: a weight ``W [.., d1, d2]`` has the thin SVD ``W = U diag(S) Vh`` with ``U [.., d1, k]``, ``S [.., k]``
descending and non-negative, ``Vh [.., k, d2]``; ``G [.., d1, d2]`` is its gradient. Leading dimensions are batches.
Everything is computed in the dtype that it is given; parity is judged in float64 on the operands as stored.
"""

import torch
from torch import Tensor

# two singular values whose squares differ by less than this share of the larger square count as equal:
# far below the spacing of float32, so that only true ties fall under it
GAP = 1e-12

# directions with sigma <= FLOOR * sigma_max take no part in the rescaling: 1 / sigma would let them take it all
FLOOR = 1e-6


def project(G: Tensor, U: Tensor, Vh: Tensor) -> Tensor:
    """Compute equation (2), the gradient in the weight's singular basis, ``N = Uᵀ G V`` ``[.., k, k]``."""
    return U.mT @ G @ Vh.mT


def skew(N: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """Compute equation (3), the skew-symmetric generators ``(H, K)``, each ``[.., k, k]``, of the turns of U and V.

        H_ij = (σ_j N_ij + σ_i N_ji) / (σ_j² − σ_i²)        H_ii = 0
        K_ij = (σ_j N_ji + σ_i N_ij) / (σ_j² − σ_i²)        K_ii = 0

    Where two singular values tie (see ``GAP``) the turn is not defined and the entries are 0. Recomposing then loses
    ``N_ij`` and ``N_ji`` of that pair, which the two-product form of the backends keeps.
    """
    row, column = S.unsqueeze(-1), S.unsqueeze(-2)
    # the difference of squares as a product: squaring first would cancel the digits of close values
    gap = (column - row) * (column + row)
    tied = gap.abs() <= GAP * torch.maximum(row, column).square()
    inverse = torch.where(tied, 0, 1 / torch.where(tied, 1, gap))
    return (column * N + row * N.mT) * inverse, (column * N.mT + row * N) * inverse


def rescale(g: Tensor, S: Tensor, rho: float, floor: float = FLOOR) -> Tensor:
    """Compute equation (7), the diagonal ``g [.., k]`` of N with its energy shared out anew inside each sign group.

        ε_i = sgn g_i        φ_i = σ_i^ε_i / Σ_{ε_j = ε_i} σ_j^ε_j
        g'_i = ε_i √((1 − ρ) g_i² + ρ φ_i Σ_{ε_j = ε_i} g_j²)

    Directions with ``σ_i <= floor · σ_max`` leave both sums and keep their ``g_i``.
    """
    alive = floor * S.amax(-1, keepdim=True) < S
    rescaled = g
    for sign in (1, -1):
        group = alive & (g.sign() == sign)
        weight = torch.where(group, torch.where(alive, S, 1) ** sign, 0)
        total = weight.sum(-1, keepdim=True)
        phi = weight / torch.where(total > 0, total, 1)
        energy = torch.where(group, g, 0).square().sum(-1, keepdim=True)
        rescaled = torch.where(group, sign * ((1 - rho) * g.square() + rho * phi * energy).sqrt(), rescaled)
    return rescaled


def recompose(H: Tensor, g: Tensor, K: Tensor, U: Tensor, S: Tensor, Vh: Tensor) -> Tensor:
    """Compute equation (8) from its parts: ``G' = U [H diag(S) + diag(g) + diag(S) Kᵀ] Vh``, ``g [.., k]``."""
    middle = H * S.unsqueeze(-2) + torch.diag_embed(g) + S.unsqueeze(-1) * K.mT
    return U @ middle @ Vh


def rescale_gradient(
    G: Tensor, U: Tensor, S: Tensor, Vh: Tensor, rho: float, out_of_span: str = "drop", floor: float = FLOOR
) -> Tensor:
    """Compute the literal chain (2), (3), (7), (8): ``G' [.., d1, d2]``.

    ``out_of_span="drop"`` is the paper's (8), which loses what U and Vh do not span; ``"keep"`` adds it back,
    ``G − U Uᵀ G V Vᵀ``.
    """
    if out_of_span not in ("drop", "keep"):
        raise ValueError(f"out_of_span must be 'drop' or 'keep', got {out_of_span!r}")
    N = project(G, U, Vh)
    H, K = skew(N, S)
    g = rescale(N.diagonal(dim1=-2, dim2=-1), S, rho, floor)
    rescaled = recompose(H, g, K, U, S, Vh)
    if out_of_span == "keep":
        rescaled = rescaled + G - U @ N @ Vh
    return rescaled
