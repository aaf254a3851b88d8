"""Which weights are taken head by head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from gsr_kernels.basis import split_heads
from gsr_kernels.methods.base import Heads
from gsr_kernels.optim.names import some
from gsr_kernels.optim.rank import ends_with
from gsr_kernels.optim.targets import Target


def resolve_heads(heads: Mapping[str, int | tuple[int, int]] | None, matched: Sequence[Target]) -> dict[str, Heads]:
    """The heads of each matched weight, None for the whole of it.

    Args:
        heads: ``{regex: h}`` splits the rows of the weights that the pattern matches, as those of ``rank`` do, into h
            heads, ``{regex: (h, 1)}`` their columns (an output projection).

    Raises ValueError for a pattern that matches nothing and for an h that does not divide that side of the weight.
    """
    resolved: dict[str, Heads] = {target.name: target.heads for target in matched}
    for pattern, value in (heads or {}).items():
        chosen = [target for target in matched if ends_with(pattern, target.name)]
        if not chosen:
            raise ValueError(f"heads: the pattern {pattern!r} matches none of {some(resolved)}")
        for target in chosen:
            try:
                # of a DTensor, too, the shape is enough
                split_heads(torch.empty(target.parameter.shape, device="meta"), value)
            except ValueError as error:
                raise ValueError(f"{target.name}: {error}") from error
            resolved[target.name] = value
    return resolved
