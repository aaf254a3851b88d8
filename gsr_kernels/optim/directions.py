"""What one gradient does to each singular direction of its weight, on demand."""

from __future__ import annotations

import torch
from torch import Tensor

from gsr_kernels.methods.projections import operands
from gsr_kernels.reference import project, skew
from gsr_kernels.weight import Weight


@torch.no_grad()
def directions(weight: Weight, W: Tensor, G: Tensor) -> dict[str, Tensor]:
    """Of the gradient G before the step, ``[.., k]`` each, one number a direction; nothing is changed.

    ``sigma``; ``g`` and ``rescaled``, the diagonals of ``Uᵀ G V`` and ``Uᵀ G' V``; ``turn_left`` and ``turn_right``,
    the norms of the rows of H and K (paper, equation 3): how fast a step of this gradient turns each singular vector.
    """
    basis = weight.basis.to(G.device)
    split = basis.split(G)
    wide, U, Vh = operands(split, basis)
    N = project(wide, U, Vh)
    H, K = skew(N, basis.S.to(N.dtype))

    rescaled = split.clone()
    state = {key: value.clone() for key, value in weight.state.items()}
    weight.method.transform([rescaled], [basis.split(W)], [basis], [state])
    return {
        "sigma": basis.S,
        "g": N.diagonal(dim1=-2, dim2=-1),
        "rescaled": project(rescaled.to(wide.dtype), U, Vh).diagonal(dim1=-2, dim2=-1),
        "turn_left": torch.linalg.vector_norm(H, dim=-1),
        "turn_right": torch.linalg.vector_norm(K, dim=-1),
    }
