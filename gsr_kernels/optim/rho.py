"""Which rho each weight is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gsr_kernels.optim.names import some
from gsr_kernels.optim.rank import ends_with

Rho = float | Mapping[str, float]


def resolve_rho(rho: Rho, names: Sequence[str]) -> dict[str, float]:
    """The rho of each weight.

    Args:
        rho: a number; or ``{regex: number}``, matched as the patterns of ``rank`` are, where a later pattern overrules
            an earlier one.
        names: of the matched weights.

    Raises ValueError for a pattern that matches nothing and a weight that no pattern matches.
    """
    if not isinstance(rho, Mapping):
        return dict.fromkeys(names, rho)
    resolved: dict[str, float] = {}
    for pattern, value in rho.items():
        chosen = [name for name in names if ends_with(pattern, name)]
        if not chosen:
            raise ValueError(f"rho: the pattern {pattern!r} matches none of {some(names)}")
        resolved |= dict.fromkeys(chosen, value)
    left = [name for name in names if name not in resolved]
    if left:
        raise ValueError(f"rho: no pattern matches {some(left)}; let '.*' come first for all the others")
    return resolved
