"""The sketch ``Y = W Ω`` of a randomized SVD, Ω a function of its seed and indices alone."""

import torch
from torch import Tensor

from gsr_kernels.backends.torch.products import product

# Philox 4x32 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3; SC 2011)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
ROUNDS = 10
WORD = 0xFFFFFFFF

# log(1 + x) / x and sin(πx/2) / x in powers of x and x² on [0, 1], fitted to 1e-6, the highest power first
LN_2 = 0.6931471805599453
LOG = (0.01420283, -0.06658805, 0.1494346, -0.2351486, 0.3311205, -0.4998719, 0.9999988)
SINE = (-0.0043708, 0.07950033, -0.6459258, 1.570795)

# a row of a sparse Ω has one entry in every so many columns
SPARSITY = 16


def sketch(W: Tensor, width: int, seed: int, kind: str) -> Tensor:
    """Compute ``Y [.., m, width] = W [.., m, n] Ω [n, width]`` in the dtype of W; see ``omega``."""
    return product(W, omega(W.shape[-1], width, seed, kind, W.device).to(W.dtype))


def omega(rows: int, width: int, seed: int, kind: str, device: torch.device | str = "cpu") -> Tensor:
    """Return Ω ``[rows, width]`` in float32, independent of the device, and fewer columns are the first of more.

    ``kind`` "gaussian" draws from the standard normal distribution, rounded to the 11 bits of a TF32 operand. "sparse"
    has one ±4 in every 16 columns of a row, variance 1 as well.

    A quarter of the rows, counted by c0, and the columns, counted by c1, make the counter; the four words of its
    random number belong to the four quarters.
    """
    return torch.cat(_quarters(0, -(-rows // 4), width, seed, kind, device))[:rows]


def omega_rows(start: int, stop: int, rows: int, width: int, seed: int, device: torch.device) -> Tensor:
    """Return ``omega(rows, width, seed, "gaussian", device)[start:stop]``, of which no more is drawn."""
    quarter = -(-rows // 4)
    drawn = [torch.empty(0, width, device=device)]
    for part in range(4):
        low, high = max(start - part * quarter, 0), min(stop - part * quarter, quarter)
        if low < high:
            drawn.append(_quarters(low, high, width, seed, "gaussian", device)[part])
    return torch.cat(drawn)


def _quarters(low: int, high: int, width: int, seed: int, kind: str, device: torch.device | str) -> list[Tensor]:
    """Return the rows that the counters from low to high have in each quarter of Ω."""
    c0 = torch.arange(low, high, device=device)[:, None]
    c1 = torch.arange(width, device=device)[None, :]
    if kind == "sparse":
        return [_sign(word, c1) for word in philox(seed, c0, c1 // SPARSITY)]
    words = philox(seed, c0, c1)
    return [*_normal(words[0], words[1]), *_normal(words[2], words[3])]


def philox(seed: int, c0: Tensor, c1: Tensor) -> list[Tensor]:
    """Return four 32-bit words, kept in int64, of the counter (c0, c1, 0, 0)."""
    low, high = seed & WORD, (seed >> 32) & WORD
    a, b = torch.broadcast_tensors(c0, c1)
    c = d = torch.zeros_like(a)
    for _ in range(ROUNDS):
        # the product wraps around, its 64 bits are right; in place, since memory decides the time
        even, odd = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        a = (odd >> 32).bitwise_and_(WORD).bitwise_xor_(b).bitwise_xor_(low)
        c = (even >> 32).bitwise_and_(WORD).bitwise_xor_(d).bitwise_xor_(high)
        b, d = odd.bitwise_and_(WORD), even.bitwise_and_(WORD)
        low, high = (low + KEY_STEPS[0]) & WORD, (high + KEY_STEPS[1]) & WORD
    return [a, b, c, d]


def _normal(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return Box and Muller's two normal draws from two words, by operations that every device rounds equally."""
    # 23 bits and a half: exact in float32 and never 0
    bits = ((first >> 9).float() + 0.5).mul_(2.0**-23).view(torch.int32)
    mantissa = ((bits & 0x7FFFFF) | 0x3F800000).view(torch.float32) - 1
    log = ((bits >> 23) - 127).float() * LN_2 + mantissa * _polynomial(mantissa, LOG)
    # torch's own float32 root is not always rounded to nearest, that of float64 is
    radius = (log * -2).clamp_(min=0).double().sqrt_().float()
    # an angle of the first quadrant, and two signs
    angle = ((second >> 11).float() + 0.5).mul_(2.0**-21)
    pair = []
    for x, bit in ((1 - angle, 1), (angle, 2)):
        size = radius * (x * _polynomial(x * x, SINE))
        pair.append(_rounded(torch.where(second & bit > 0, -size, size)))
    return pair[0], pair[1]


def _polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    value = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value.mul_(x).add_(coefficient)
    return value


def _rounded(x: Tensor) -> Tensor:
    return ((x.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)


def _sign(word: Tensor, column: Tensor) -> Tensor:
    size = torch.where(word & SPARSITY > 0, SPARSITY**0.5, -(SPARSITY**0.5))
    return torch.where(word % SPARSITY == column % SPARSITY, size, 0.0)
