"""Merge several adapters into a weight in plain torch, a strip of rows at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from gsr_kernels.backends.torch.stability import strip
from gsr_kernels.backends.torch.stages import widened


def merge(W: Tensor, B: Tensor, A: Tensor, how: str, density: float) -> None:
    """Add M to ``W [d1, d2]``, rounded once, for ``B [T, d1, r]`` and ``A [T, r, d2]``: see ``merging.merge``."""
    _, (_, B, A) = widened(W, B, A)
    trim = _thresholds(B, A, density) if how == "ties" else []
    height = strip(B.shape[1], A.shape[-1])
    for start in range(0, len(W), height):
        rows = slice(start, start + height)
        deltas = (b @ a for b, a in zip(B[:, rows], A))
        if how == "magnitude":
            merged = next(deltas)
            for delta in deltas:
                # of two of one size the newer one
                merged = torch.where(delta.abs() >= merged.abs(), delta, merged)
        elif how == "ties":
            merged = _agreed(torch.stack([torch.where(d.abs() >= least, d, 0) for d, least in zip(deltas, trim)]))
        else:
            merged = next(deltas)
            for delta in deltas:
                merged += delta
            if how == "mean":
                merged /= len(B)
        W[rows] = (W[rows].to(merged.dtype) + merged).to(W.dtype)


def _thresholds(B: Tensor, A: Tensor, density: float) -> list[Tensor]:
    """Return of each adapter the least size in the largest ``density`` of its elements, one whole matrix at a time."""
    found = []
    for b, a in zip(B, A):
        sizes = (b @ a).abs_().flatten()
        # 0.3 · 10 is 3, not 2: the rounding of the product is no element
        kept = max(1, int(density * sizes.numel() + 1e-9))
        found.append(sizes.kthvalue(sizes.numel() - kept + 1).values)
    return found


def _agreed(deltas: Tensor) -> Tensor:
    """Return the mean, over the adapters with the sign of the sum, of the elements that trimming has left."""
    agreeing = (deltas.sign() == deltas.sum(0).sign()) & (deltas != 0)
    return torch.where(agreeing, deltas, 0).sum(0) / agreeing.sum(0).clamp_min(1)
