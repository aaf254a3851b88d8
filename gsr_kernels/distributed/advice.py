"""What attach() says of weights that are cut where they cost more than they need."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from math import prod

from gsr_kernels.distributed.schemes import LongSide
from gsr_kernels.messages import some
from gsr_kernels.weight import Weight


def advise(weights: Sequence[Weight]) -> None:
    """Warns where "drop" sums more than a diagonal and another cut would not: what it would save, and what it costs."""
    # where bases are shared the other cut would gather the long factor, twice
    schemes = [weight.scheme for weight in weights]
    dear = [weight for weight, one in zip(weights, schemes) if isinstance(one, LongSide) and not one.gathers]
    if not dear:
        return
    now = sum(prod(weight.scheme.sums_shape(weight.basis.rank)) * weight.basis.S.element_size() for weight in dear)
    free = sum(weight.basis.S.nbytes for weight in dear)
    more = kept = 0.0
    for weight in dear:
        layout, basis = weight.scheme.layout, weight.basis
        ranks = prod(layout.mesh.size(i) for i in layout.cuts())
        # the long factor whole and the short one cut, instead of the other way round
        longer = basis.S.numel() * abs(layout.shape[-2] - layout.shape[-1]) * basis.U.element_size()
        more += longer * (1 - 1 / ranks)
        # Uᵀ G, in the dtype of S, as products with float32 bases are
        kept += basis.S.nbytes * min(layout.shape[-2:]) / ranks
    warnings.warn(
        f"gsr_kernels: {len(dear)} weights ({some([weight.name for weight in dear])}) are cut along their long side, "
        f'where "drop" sums {now:,} bytes a step. '
        f"fully_shard(..., shard_placement_fn=gsr_kernels.shard_placement_fn) cuts the short side and sums "
        f"{free:,}; every rank then holds the long factors whole, {more:,.0f} bytes more, and keeps "
        f"{kept:,.0f} between the products of a step. "
        'out_of_span="keep" is free on either side',
        stacklevel=3,
    )
