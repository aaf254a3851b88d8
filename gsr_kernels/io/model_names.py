"""The parameters of a saved model, under the names that they have once transformers has loaded it."""

from __future__ import annotations

import copy
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gsr_kernels.io.model_checkpoint import FLOATS, Saved, saved_tensors
from gsr_kernels.messages import first_sentence, install, some
from gsr_kernels.optim.targets import find_targets


@dataclass(frozen=True)
class Stored:
    """One parameter of a saved model, whose value ``read(device)`` returns.

    ``dtype`` is None for what is no float of 16 bits or more. ``saved`` is the tensor that holds it as it is, None
    where it is made of others, as packed experts are. ``heads`` is 3 for q, k and v in one.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    read: Callable[[str], Tensor]
    saved: Saved | None = None
    heads: int | None = None


def stored_parameters(directory: str | os.PathLike[str]) -> tuple[dict[str, Stored], nn.Module | None]:
    """Return what a directory holds of a model by the model's names, and the model itself on the meta device.

    Where transformers has no model for the directory a line is printed, and the names are those in the files.

    Raises as ``saved_tensors``.
    """
    saved = saved_tensors(directory)
    try:
        model = build(Path(directory))
        return _named(model, saved), model
    except LookupError as error:
        print(f"{os.fspath(directory)}: {error.args[0]}. Its weights are named as in the files, not as in the model")
        return {name: _as_saved(name, one) for name, one in saved.items()}, None


def stored_matrices(directory: str | os.PathLike[str], targets: str | None = None) -> list[Stored]:
    """Return the parameters of a saved model that ``attach(targets=)`` would match, in the model's order.

    Args:
        directory: holds ``*.safetensors``, as ``save_pretrained`` writes them.
        targets: "all-linear", which None stands for, or a regular expression; see ``find_targets``.

    Raises as ``saved_tensors``, and ValueError where targets is no regular expression or matches nothing.
    """
    stored, model = stored_parameters(directory)
    if packed := [name for name, one in stored.items() if one.dtype is None and len(one.shape) > 1]:
        print(f"left out, since not kept as {', '.join(FLOATS)}: {some(packed)}")
    held = {name: one for name, one in stored.items() if one.dtype is not None}
    parameters = {name: nn.Parameter(torch.empty(one.shape, device="meta")) for name, one in held.items()}
    if model is not None:
        parameters = {name: parameter for name, parameter in model.named_parameters() if name in held}
    found = find_targets(model or parameters, targets or "all-linear", set(parameters.values()))
    return [replace(held[target.name], heads=target.heads) for target in found if target.reason is None]


def build(directory: Path) -> nn.Module:
    """Return the model of a directory without values; LookupError, with the reason, where transformers cannot."""
    if not (directory / "config.json").is_file():
        raise LookupError("it has no config.json")
    if find_spec("transformers") is None:
        raise LookupError(f"transformers is not installed ({install('runner')})")
    import transformers

    try:
        return build_config(transformers.AutoConfig.from_pretrained(directory, trust_remote_code=False))
    # whatever the code of an architecture raises
    except Exception as error:
        reason = f"{type(error).__name__}: {first_sentence(error)}"
        raise LookupError(f"transformers cannot build its model without values ({reason})") from error


def build_config(config: Any) -> nn.Module:
    """Return the model of a configuration without values: of the class that it names, or else of its model type."""
    import transformers

    named = getattr(transformers, (config.architectures or [""])[0], None)
    # on the meta device a model has shapes and no memory
    with torch.device("meta"):
        if isinstance(named, type) and issubclass(named, transformers.PreTrainedModel):
            return named(config)
        causal = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
        return (transformers.AutoModelForCausalLM if causal else transformers.AutoModel).from_config(config)


def _named(model: Any, saved: Mapping[str, Saved]) -> dict[str, Stored]:
    """Rename and convert as ``from_pretrained`` does; what the model lacks is left out."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key
    except ImportError as error:
        raise LookupError(f"this transformers does not say how it renames weights ({error})") from error
    transforms = get_model_conversion_mapping(model)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    of_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
    prefix, state = model.base_model_prefix, model.state_dict()
    sources: dict[str, list[tuple[str | None, Saved]]] = defaultdict(list)
    # experts are stacked in this order
    for name in sorted(saved, key=dot_natural_key):
        renamed, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if renamed not in state and name in state:
            renamed, pattern = rename_source_key(name, [], [], prefix, state)
        if renamed in state:
            sources[renamed].append((pattern, saved[name]))
    found = {}
    for name, parts in sources.items():
        pattern, first = parts[0]
        packed = [one for _, one in parts if one.dtype not in FLOATS]
        if pattern is None or packed:
            found[name] = _as_saved(name, packed[0] if packed else first)
            continue
        convert = partial(_convert, model, of_pattern[pattern], name, parts)
        for target, meta in convert("meta").items():
            read = partial(_one_of, convert, target)
            found[target] = Stored(target, tuple(meta.shape), meta.dtype, read)
    return found


def _as_saved(name: str, one: Saved) -> Stored:
    return Stored(name, one.shape, FLOATS.get(one.dtype), one.read, one)


def _convert(
    model: Any, converter: Any, name: str, sources: Sequence[tuple[str | None, Saved]], device: str
) -> dict[str, Tensor]:
    """Return the parameters that transformers makes of saved tensors."""
    fresh = copy.deepcopy(converter)
    for pattern, saved in sources:
        fresh.add_tensor(name, saved.name, pattern, saved.read(device))
    converted = fresh.convert(name, model=model, config=model.config)
    return {target: one[0] if isinstance(one, list) else one for target, one in converted.items()}


def _one_of(convert: Callable[[str], Mapping[str, Tensor]], name: str, device: str) -> Tensor:
    return convert(device)[name].contiguous()
