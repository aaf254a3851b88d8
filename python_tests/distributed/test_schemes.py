"""Dtypes of what a rank adds to a sum."""

import pytest
import torch

from gsr_kernels import SpectralBasis
from gsr_kernels.distributed.layout import Layout
from gsr_kernels.distributed.schemes import Core, Diagonal, LongSide, ShortSide


@pytest.mark.parametrize("scheme", [Diagonal, ShortSide, LongSide, Core])
def test_16_bit_gradients_and_bases_are_summed_in_float32(scheme):
    # on a CPU every product is in float32: dtypes alone tell what another device would do
    with torch.device("meta"):
        G = torch.empty(12, 8, dtype=torch.float16)
        U, S, Vh = (torch.empty(12, 5), torch.empty(5), torch.empty(5, 8))
    basis = SpectralBasis(U.half(), S, Vh.half())
    one = scheme(Layout(G.shape))
    operands = one.operands(G, basis)
    part, *kept = one.partial(operands)
    assert part.dtype == torch.float32 and part.shape == one.sums_shape(5)
    assert one.rescaled(part, kept, operands, torch.empty(5, device="meta")).dtype == torch.float32
