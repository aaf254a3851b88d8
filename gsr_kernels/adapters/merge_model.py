"""Merge the adapters of a PEFT model into its weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from peft import PeftModel
from torch import nn
from tqdm import tqdm

from gsr_kernels.adapters.factors import adapter_names, same_modules, stacked
from gsr_kernels.adapters.merging import DENSITY, How, check_finite, check_how, merge
from gsr_kernels.adapters.stability import check_factor
from gsr_kernels.checks import Backend
from gsr_kernels.messages import some


def merge_and_unload(
    model: PeftModel,
    adapters: Sequence[str] | None = None,
    how: How = "magnitude",
    density: float = DENSITY,
    backend: Backend = "auto",
) -> nn.Module:
    """Return the base model with the adapters merged into its weights in place, as PEFT's function does with one.

    Args:
        model: a PeftModel whose adapters are plain LoRA of linear layers.
        adapters: oldest first; by default all, in the order in which they were added. Others are lost; of
            modules that were trained whole beside the adapters (modules_to_save) the last one's stay.
        how: "magnitude", "sum", "mean" or "ties", see ``merging.merge``.
        density: in (0, 1], the share of each adapter's entries that "ties" keeps.
        backend: "auto" (Triton on a GPU, torch elsewhere), "torch" or "triton".

    Raises as ``merging.merge``, ``find_factors`` and ``same_modules``, and TypeError for an adapter with trainable
    tokens. Raises ValueError where a factor holds NaN or Inf, a weight is tied to another, or the model has merged by
    itself. Nothing has changed then.
    """
    if not isinstance(model, PeftModel):
        raise TypeError(f"model must be a peft.PeftModel, got {type(model).__name__}: get_peft_model makes one")
    check_how(how, density)
    names = adapter_names(model) if adapters is None else list(adapters)
    if not names:
        raise ValueError("adapters is empty: name those to be merged")
    rows = same_modules(model, names)
    for name in names:
        if getattr(model.peft_config[name], "trainable_token_indices", None):
            raise TypeError(f"adapter {name!r} trains tokens (trainable_token_indices), which merging would lose")
    held: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        held[parameter.data_ptr()].append(name)
    for row in rows:
        module, W = row[0].name, row[0].weight
        if len(tied := held[W.data_ptr()]) > 1:
            raise ValueError(
                f"{module} has a weight that the model holds {len(tied)} times ({some(tied)}): merging would change "
                "all of them. Give the module a copy of its own first"
            )
        if row[0].layer.merged:
            raise ValueError(f"{module} holds merged adapters already: call model.unmerge_adapter() first")
        check_factor(f"the weight of {module}", W)
        for adapter, one in zip(names, row):
            check_finite(adapter, one.name, one.B, one.A)
    for row in tqdm(rows, "merging", unit="matrix", leave=False, disable=None):
        with torch.no_grad():
            merge(row[0].weight, *stacked(row), how, density, backend)
    model.set_adapter(names[-1])
    return model.unload()
