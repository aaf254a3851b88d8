"""Equation (7) for gradients of any magnitude."""

import torch
from torch import Tensor

from gsr_kernels.backends.torch.products import power_of_two
from gsr_kernels.reference import FLOOR


def rescale(g: Tensor, S: Tensor, rho: float, floor: float = FLOOR) -> Tensor:
    """Compute ``reference.rescale`` in float32 or better: ``g [.., k]``, ``S [.., k]`` -> ``g' [.., k]``.

    Squares of |g| ~ 1e25 overflow float32 and those of 1e-25 vanish, so g is first divided by the power of two next to
    its largest magnitude, which is exact.
    """
    if rho == 0:
        return g.clone()
    dtype, wide = g.dtype, torch.promote_types(g.dtype, torch.float32)
    g, S = g.to(wide), S.to(wide)
    sigma_max = S.amax(-1, keepdim=True)
    alive = floor * sigma_max < S
    sigma = torch.where(alive, S / torch.where(sigma_max > 0, sigma_max, 1), 1)

    # 2^±126 is the last power of two whose inverse is a normal float32 as well
    exponent = g.abs().amax(-1, keepdim=True).frexp().exponent.clamp(-126, 126)
    scaled = g * power_of_two(-exponent, wide)

    squares = scaled.square()
    rescaled = scaled
    for group, weight in ((alive & (g > 0), sigma), (alive & (g < 0), 1 / sigma)):
        weight = torch.where(group, weight, 0)
        total = weight.sum(-1, keepdim=True)
        energy = torch.where(group, squares, 0).sum(-1, keepdim=True)
        share = energy / torch.where(total > 0, total, 1)
        rescaled = torch.where(group, ((1 - rho) * squares + rho * share * weight).sqrt().copysign(scaled), rescaled)
    return (rescaled * power_of_two(exponent, wide)).to(dtype)
