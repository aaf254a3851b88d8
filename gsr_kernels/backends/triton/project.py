"""Equation (2) as two products."""

import torch
from torch import Tensor

from gsr_kernels.backends.triton.product import product


def project(G: Tensor, U: Tensor, Vh: Tensor) -> Tensor:
    """``reference.project``: ``G [.., d1, d2]``, ``U [.., d1, k]``, ``Vh [.., k, d2]`` -> ``N [.., k, k]``.

    Between the two products G V stays in float32.
    """
    dtype = torch.promote_types(G.dtype, U.dtype)
    T = product(G, Vh.mT, torch.float32)
    return product(U.mT, T, dtype)
