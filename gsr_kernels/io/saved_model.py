"""A saved model: the tensors of its safetensors shards, and its parameters as transformers names them once loaded."""

from __future__ import annotations

import copy
import json
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from gsr_kernels.io.bases_file import DTYPES, FORMAT
from gsr_kernels.messages import first_sentence, install, some
from gsr_kernels.optim.targets import find_targets

# what can be decomposed and merged into, by safetensors' names
FLOATS = {text: dtype for dtype, text in DTYPES.items()}


@dataclass(frozen=True)
class Saved:
    """One tensor in a shard; ``dtype`` as safetensors calls it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: Path

    def read(self, device: str = "cpu") -> Tensor:
        """Read the tensor; on the meta device it has no values, and no file is read."""
        if device == "meta":
            return torch.empty(self.shape, dtype=FLOATS[self.dtype], device=device)
        with safe_open(self.file, framework="pt", device=device) as shard:
            return shard.get_tensor(self.name)


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


def saved_tensors(directory: str | os.PathLike[str]) -> dict[str, Saved]:
    """Return every tensor of the shards in a directory by its name there.

    Bases files are skipped. Where the directory has an index of its shards, only what it names is read.

    Raises FileNotFoundError where there are no shards, or one of the index is not there, ValueError where one is
    damaged, or two hold the same tensor.
    """
    files = _shards(Path(directory))
    if not files:
        raise FileNotFoundError(f"no *.safetensors in {os.fspath(directory)}: save the model with save_pretrained()")
    found: dict[str, Saved] = {}
    for one in (saved for file in files for saved in _tensors(file)):
        if one.name in found:
            other = found[one.name].file
            raise ValueError(f"{one.name} is in {other} and in {one.file.name}: remove what is not the model's")
        found[one.name] = one
    return found


def _shards(directory: Path) -> list[Path]:
    indices = sorted(directory.glob("*.safetensors.index.json"))
    if not indices:
        return sorted(directory.glob("*.safetensors"))
    try:
        names = {name for index in indices for name in json.loads(index.read_bytes())["weight_map"].values()}
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{indices[0]} is damaged ({error}): fetch it again, or remove it") from error
    missing = sorted(name for name in names if not (directory / name).is_file())
    if missing:
        raise FileNotFoundError(f"{indices[0]} names {missing[0]}, which is not there: fetch it again")
    return sorted(directory / name for name in names)


def _tensors(file: Path) -> list[Saved]:
    try:
        with safe_open(file, framework="pt") as shard:
            if (shard.metadata() or {}).get("format") == FORMAT:
                return []
            entries = {name: shard.get_slice(name) for name in shard.keys()}  # noqa: SIM118
            return [Saved(name, tuple(one.get_shape()), one.get_dtype(), file) for name, one in entries.items()]
    except SafetensorError as error:
        raise ValueError(f"{file} is truncated or damaged ({error}): fetch it again") from error


def stored_parameters(directory: str | os.PathLike[str]) -> tuple[dict[str, Stored], nn.Module | None]:
    """Return what a directory holds of a model by the model's names, and the model itself on the meta device.

    Where transformers has no model for the directory a line is printed, and the names are those in the files.

    Raises as ``saved_tensors``.
    """
    saved = saved_tensors(directory)
    try:
        model = build(Path(directory))
        return _named(model, saved)[0], model
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
    named = "all-linear" if targets is None else targets
    found = find_targets(model or parameters, named, set(parameters.values()))
    return [replace(held[target.name], heads=target.heads) for target in found if target.reason is None]


def build(directory: Path) -> nn.Module:
    """Return the model of a directory without values; LookupError, with the reason, where transformers cannot.

    A config.json alone will do too.
    """
    if not directory.is_file() and not (directory / "config.json").is_file():
        raise LookupError("it has no config.json")
    if find_spec("transformers") is None:
        raise LookupError(f"transformers is not installed ({install()})")
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


@torch.no_grad()
def load_into(model: nn.Module, directory: str | os.PathLike[str]) -> None:
    """Load a directory that ``model.save_pretrained`` wrote into the parameters and buffers of the same model.

    They are converted as ``from_pretrained`` does, such as experts that are saved one by one and packed in the model.

    Raises as ``saved_tensors``, and ValueError, with nothing changed, where the directory and the model differ.
    """
    saved, state = saved_tensors(directory), model.state_dict()
    try:
        found, beside = _named(model, saved)
    except LookupError:
        found = {name: _as_saved(name, one) for name, one in saved.items() if name in state}
        beside = sorted(saved.keys() - found.keys())
    # one tensor under two names is saved under one
    held = {state[name].data_ptr() for name in found}
    unsaved: Any = getattr(model, "_keys_to_ignore_on_save", None) or ()
    lacking = [name for name in state.keys() - unsaved if state[name].data_ptr() not in held]
    other = [name for name, one in found.items() if one.shape != state[name].shape]
    for names, problem in (
        (lacking, "lacks {}, which the model has"),
        (beside, "holds {}, which the model has not"),
        (other, "holds {} in another shape than the model"),
    ):
        if names:
            raise ValueError(
                f"{os.fspath(directory)} {problem.format(some(sorted(names)))}: it was saved from another model, or by "
                "another transformers; load it with those that wrote it"
            )
    for name, one in found.items():
        state[name].copy_(one.read("cpu"))


def _named(model: Any, saved: Mapping[str, Saved]) -> tuple[dict[str, Stored], list[str]]:
    """Rename and convert as ``from_pretrained`` does; return also the names of what the model lacks."""
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
    beside = []
    # experts are stacked in this order
    for name in sorted(saved, key=dot_natural_key):
        renamed, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if renamed not in state and name in state:
            renamed, pattern = rename_source_key(name, [], [], prefix, state)
        if renamed in state:
            sources[renamed].append((pattern, saved[name]))
        else:
            beside.append(name)
    found = {}
    for name, parts in sources.items():
        pattern, first = parts[0]
        packed = [one for _, one in parts if one.dtype not in FLOATS]
        if pattern is None or packed:
            found[name] = _as_saved(name, packed[0] if packed else first)
            continue
        convert = partial(_convert, model, of_pattern[pattern], name, parts)
        for target, meta in convert("meta").items():
            found[target] = Stored(target, tuple(meta.shape), meta.dtype, partial(_one_of, convert, target))
    return found, beside


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
