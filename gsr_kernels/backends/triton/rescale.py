# mypy: disallow-untyped-defs=False
"""Equation (7): one program a row, float32, sums in a fixed order."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from gsr_kernels.backends.triton.configurations import BLOCK, on, options
from gsr_kernels.backends.triton.tiles import inverse, power_of_two
from gsr_kernels.reference import FLOOR


@triton.jit
def rescale_row(p_partials, parts, k, p_s, rho, floor, p_g, p_out, DIFFERENCE: tl.constexpr, BLOCK: tl.constexpr):
    """g = the sum of ``parts`` rows of partial sums [parts, k] to p_g; and g' of equation (7), or δ = g' − g, to p_out.

    Returns whether g is finite, and max |δ|. Where it is not finite, δ is 0.
    """
    offsets = tl.arange(0, BLOCK)
    strange = tl.zeros([BLOCK], tl.int32)
    most = tl.zeros([BLOCK], tl.float32)
    sigma_max = tl.zeros([BLOCK], tl.float32)
    for start in range(0, k, BLOCK):
        o, m = start + offsets, offsets < k - start
        g = tl.zeros([BLOCK], tl.float32)
        for part in range(parts):
            g += tl.load(p_partials + part * k.to(tl.int64) + o, mask=m, other=0.0)
        tl.store(p_g + o, g, mask=m)
        # false for NaN as well
        strange += (tl.abs(g) < float("inf")).to(tl.int32) ^ 1
        most = tl.maximum(most, tl.abs(g))
        sigma_max = tl.maximum(sigma_max, tl.load(p_s + o, mask=m, other=0.0))
    # values that other threads of the program wrote to p_g are read below
    tl.debug_barrier()
    finite = tl.sum(strange, 0) == 0
    largest_sigma = tl.max(sigma_max, 0)
    # squares of 1e25 overflow and those of 1e-25 vanish: an exact power of two takes g to at most 1
    scale = power_of_two(tl.max(most, 0), 0)
    unit = tl.where(largest_sigma > 0, largest_sigma, 1.0)

    weight_up, weight_down = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    energy_up, energy_down = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for start in range(0, k, BLOCK):
        o, m = start + offsets, offsets < k - start
        before = tl.load(p_g + o, mask=m, other=0.0)
        g = before * scale
        s = tl.load(p_s + o, mask=m, other=0.0)
        alive = s > floor * largest_sigma
        sigma = tl.where(alive, tl.div_rn(s, unit), 1.0)
        # the sign is g's own: what was scaled may have become 0
        up, down = alive & (before > 0), alive & (before < 0)
        weight_up += tl.where(up, sigma, 0.0)
        weight_down += tl.where(down, tl.div_rn(1.0, sigma), 0.0)
        energy_up += tl.where(up, g * g, 0.0)
        energy_down += tl.where(down, g * g, 0.0)
    total_up, total_down = tl.sum(weight_up, 0), tl.sum(weight_down, 0)
    share_up = tl.div_rn(tl.sum(energy_up, 0), tl.where(total_up > 0, total_up, 1.0))
    share_down = tl.div_rn(tl.sum(energy_down, 0), tl.where(total_down > 0, total_down, 1.0))

    back = inverse(scale)
    moving = tl.where(finite & (rho > 0), 1.0, 0.0)
    most = tl.zeros([BLOCK], tl.float32)
    for start in range(0, k, BLOCK):
        o, m = start + offsets, offsets < k - start
        before = tl.load(p_g + o, mask=m, other=0.0)
        g = before * scale
        s = tl.load(p_s + o, mask=m, other=0.0)
        alive = s > floor * largest_sigma
        sigma = tl.where(alive, tl.div_rn(s, unit), 1.0)
        part = tl.where(before > 0, share_up * sigma, tl.div_rn(share_down, sigma))
        size = tl.sqrt_rn((1.0 - rho) * (g * g) + rho * part)
        # the root of a square that vanished is not g: at rho = 0 nothing moves
        moved = m & alive & (tl.where(before != 0, moving, 0.0) > 0)
        after = tl.where(before > 0, size, -size)
        delta = tl.where(moved, (after - g) * back, 0.0)
        most = tl.maximum(most, tl.abs(delta))
        tl.store(p_out + o, delta if DIFFERENCE else tl.where(moved, after * back, before), mask=m)
    return finite, tl.max(most, 0)


# a k of 1 would be compiled in, as an integer without a dtype
@triton.jit(do_not_specialize=["k"])
def rescale_rows(g, s, work, out, k, rho, floor, BLOCK: tl.constexpr):
    """g' [rows, k] of g and S, one program a row; work [rows, k] and out are float32."""
    row = tl.program_id(0).to(tl.int64) * k
    rescale_row(g + row, 1, k, s + row, rho, floor, work + row, out + row, False, BLOCK)


def rescale(g: Tensor, S: Tensor, rho: float, floor: float = FLOOR) -> Tensor:
    """Compute ``reference.rescale`` in float32, all rows of ``g [.., k]`` in one launch -> g' in g's dtype.

    A row with a NaN or Inf comes back as it came.
    """
    # other dtypes are torch's to convert, so that the kernel is compiled once
    dtype, g, S = g.dtype, g.float().contiguous(), S.float().contiguous()
    out = torch.empty_like(g)
    if g.numel():
        k = g.shape[-1]
        with on(g.device):
            rescale_rows[(g.numel() // k,)](
                g, S, torch.empty_like(out), out, k, float(rho), floor, BLOCK=BLOCK, **options()
            )
    return out.to(dtype)
