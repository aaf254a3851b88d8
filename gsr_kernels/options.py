"""Options of each weight: its rank, its rho, its heads, by patterns of names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING

from gsr_kernels.basis import split_shape
from gsr_kernels.checks import check_kind, check_pattern, check_rho, is_integer
from gsr_kernels.messages import some
from gsr_kernels.methods.base import Heads

if TYPE_CHECKING:
    from gsr_kernels.optim.targets import Target

# what a rank without patterns is, for a refusal
RANK = "a number of directions from 1 on or a share in (0, 1)"

Rank = int | float | Mapping[str, int | float] | None
Rho = float | Mapping[str, float]


def resolve_rank(rank: Rank, shapes: Mapping[str, Sequence[int]]) -> dict[str, int | None]:
    """Return the rank asked of each weight, None for all of it; ValueError for what none has, a pattern of nothing."""
    if not isinstance(rank, Mapping):
        return _asked(rank, shapes)
    resolved: dict[str, int | None] = dict.fromkeys(shapes)
    for pattern, value in rank.items():
        resolved |= _asked(value, {name: shapes[name] for name in _matching("rank", pattern, shapes)})
    return resolved


def _matching(option: str, pattern: str, names: Iterable[str]) -> list[str]:
    """Return the names that a pattern of an option matches; ValueError where it matches none."""
    found = [name for name in names if ends_with(pattern, name)]
    if not found:
        raise ValueError(f"{option}: the pattern {pattern!r} matches none of {some(names)}")
    return found


def _asked(rank: int | float | None, shapes: Mapping[str, Sequence[int]]) -> dict[str, int | None]:
    if rank is None:
        return dict.fromkeys(shapes)
    if isinstance(rank, bool) or not isinstance(rank, Real):
        raise ValueError(f"rank must be None, an int, a float in (0, 1) or {{regex: rank}}, got {rank!r}")
    if not is_integer(rank):
        if not 0 < rank < 1:
            raise ValueError(f"rank as a float is a share of each weight's rank, in (0, 1), got {rank}")
        return {name: max(1, round(rank * min(shape))) for name, shape in shapes.items()}
    largest = max(min(shape) for shape in shapes.values())
    if not 1 <= rank <= largest:
        raise ValueError(f"rank must lie in [1, {largest}], the largest rank of the matched weights, got {rank}")
    # of numpy's integers, too
    return dict.fromkeys(shapes, int(rank))


def ends_with(pattern: str, name: str) -> bool:
    """Return whether a regular expression matches the end of a parameter's name, with or without its last part."""
    check_pattern("a pattern of rank, heads or rho", pattern)
    return any(re.search(rf"(?:^|\.)(?:{pattern})$", one) for one in (name, name.rpartition(".")[0]))


def resolve_rho(rho: Rho, names: Sequence[str]) -> dict[str, float]:
    """Return the rho of each weight by the last pattern for it; ValueError without one, or for one of no weight."""
    if not isinstance(rho, Mapping):
        return dict.fromkeys(names, check_rho(rho))
    resolved: dict[str, float] = {}
    for pattern, value in rho.items():
        resolved |= dict.fromkeys(_matching("rho", pattern, names), check_rho(value))
    left = [name for name in names if name not in resolved]
    if left:
        raise ValueError(f"rho: no pattern matches {some(left)}; let '.*' come first for all the others")
    return resolved


def resolve_heads(heads: Mapping[str, int | tuple[int, int]] | None, matched: Sequence[Target]) -> dict[str, Heads]:
    """Return the heads of each matched weight, None for the whole of it; ValueError for what does not fit."""
    if heads is not None:
        check_kind(Mapping, "{regex: heads} or None", heads=heads)
    resolved: dict[str, Heads] = {target.name: target.heads for target in matched}
    shapes = {target.name: target.parameter.shape for target in matched}
    for pattern, value in (heads or {}).items():
        for name in _matching("heads", pattern, shapes):
            try:
                split_shape(shapes[name], value)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            resolved[name] = value
    return resolved
