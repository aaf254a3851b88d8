"""The parameter groups of an optimizer that must know its parameters by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from gsr_kernels.checks import check_kind

PARAMS = (
    "a model or (name, parameter) pairs, alone or as the params of groups: give the model or "
    "model.named_parameters(), not model.parameters()"
)


def named_groups(given: nn.Module | Iterable[Any]) -> tuple[list[dict[str, Any]], nn.Module | dict[str, nn.Parameter]]:
    """Return the groups for a torch optimizer, and what ``attach`` finds weights in: the model or named parameters.

    ``given`` is a model, whose trained parameters make one group; named parameters; or groups of them. Raises TypeError
    for parameters without names, ValueError where one comes twice or there is none.
    """
    if isinstance(given, nn.Module):
        trained = [(name, p) for name, p in given.named_parameters() if p.requires_grad]
        if not trained:
            raise ValueError("params: no parameter of the model requires a gradient")
        return [{"params": trained}], given
    # a tensor of no dimension is an Iterable
    check_kind(Iterable, PARAMS, params=None if isinstance(given, Tensor) else given)
    items: list[Any] = list(given.items() if isinstance(given, Mapping) else given)
    grouped = bool(items) and all(isinstance(item, dict) for item in items)
    groups = [{**item, "params": list(item["params"])} for item in items] if grouped else [{"params": items}]
    pairs = [pair for group in groups for pair in group["params"]]
    if not all(isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs):
        raise TypeError(f"params must be {PARAMS}")
    model = dict(pairs)
    several = {id(parameter) for _, parameter in pairs}
    if not pairs or not len(model) == len(several) == len(pairs):
        raise ValueError(
            f"params holds {len(several)} parameters under {len(model)} names in {len(pairs)} "
            "places: each must be there once"
        )
    return groups, model
