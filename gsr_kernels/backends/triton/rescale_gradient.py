"""The fused step on the weights of one call."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gsr_kernels.backends.triton.plan import Plan
from gsr_kernels.basis import SpectralBasis


def rescale_gradients(
    gradients: Sequence[Tensor],
    bases: Sequence[SpectralBasis],
    rho: float,
    out_of_span: Sequence[str],
    outs: Sequence[Tensor],
    kind: type[Plan] = Plan,
) -> list[Tensor]:
    """Write every G' to its out, the weights of a device in one plan, and return the diagonals ``g [.., k]``.

    Gradients have the shape of the weight or of its matrices. A training loop keeps a ``Plan``, whose tables are built
    once.
    """
    diagonals: dict[int, Tensor] = {}
    planned: dict[torch.device, list[int]] = {}
    for i, G in enumerate(gradients):
        planned.setdefault(G.device, []).append(i)
    for indices in planned.values():
        chosen = [_contiguous(bases[i]) for i in indices]
        plan = kind(chosen, [gradients[i].dtype for i in indices], rho, [out_of_span[i] for i in indices])
        plan.run([gradients[i] for i in indices], [outs[i] for i in indices])
        diagonals.update(zip(indices, plan.g))
    return [diagonals[i] for i in range(len(gradients))]


def _contiguous(basis: SpectralBasis) -> SpectralBasis:
    factors = basis.U.contiguous(), basis.S.float().contiguous(), basis.Vh.contiguous()
    return SpectralBasis(*factors, head_dim=basis.head_dim)
