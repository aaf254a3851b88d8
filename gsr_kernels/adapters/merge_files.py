"""Adapters as PEFT saves them, merged into the safetensors shards of their base model, one shard at a time."""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from gsr_kernels.adapters.factors import check_same
from gsr_kernels.adapters.merging import DENSITY, How, check_finite, check_how, merge
from gsr_kernels.io.atomic import replacing
from gsr_kernels.io.bases_file import find_name
from gsr_kernels.io.saved_model import FLOATS, Saved, stored_parameters
from gsr_kernels.messages import some
from gsr_kernels.methods.base import wide

WEIGHTS, CONFIG, PREFIX = "adapter_model.safetensors", "adapter_config.json", "base_model.model."
# in a shard's metadata: what was merged into it, oldest first, each with the names of all shards of that merge
MERGED = "gsr_kernels.merged"
# settings of LoraConfig with which an adapter is scaling · B A on the weights that its file names; all others must be
# as they are by default, those of later versions too
SUPPORTED = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config",
    "lora_alpha", "lora_dropout", "lora_ga_config", "peft_type", "peft_version", "qalora_group_size", "r",
    "rank_pattern", "revision", "runtime_config", "target_modules", "task_type", "use_rslora",
}  # fmt: skip
# beginnings of an adapter that leave the base model's weights as they are
BEGINNINGS = (True, False, "gaussian", "eva", "orthogonal", "mica")


@dataclass(frozen=True)
class Adapter:
    """One adapter's folder: ``scaling · B`` and A of each weight by name, and the base model.

    ``copies`` are weights of the base model that PEFT has written beside them, an output embedding's.
    ``transposed`` is what its configuration says of Conv1D: of all modules what is true of the last one.
    """

    folder: str
    base: str | None
    transposed: bool
    pairs: dict[str, tuple[Tensor, Tensor]]
    copies: dict[str, Tensor]
    digest: str


def merge_files(
    directory: str | os.PathLike[str],
    adapters: Sequence[str | os.PathLike[str]],
    how: How = "magnitude",
    density: float = DENSITY,
) -> list[Path]:
    """Merge saved adapters into the shards of a saved model, in place, on the CPU.

    A shard is replaced whole, one at a time; its metadata says what was merged into it. The same call finishes a merge
    that was interrupted between two.

    Args:
        directory: holds ``*.safetensors`` as ``save_pretrained`` writes them.
        adapters: folders as ``PeftModel.save_pretrained`` writes them, oldest first.
        how: "magnitude", "sum", "mean" or "ties", see ``merging.merge``.
        density: in (0, 1], the share of each adapter's entries that "ties" keeps.

    Returns the shards that were written.

    Raises:
        FileNotFoundError: there are no shards, or a folder holds no adapter.
        TypeError: an adapter is no plain LoRA of linear layers, by the name of its setting, or began with a change of
            the base model (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA); a weight is quantised.
        ValueError: how or density is out of range; adapters differ in base, rank or modules, or hold NaN or Inf; a
            shard or an adapter is damaged; a weight is missing, tied, made of several tensors, or has another shape;
            all of it has been merged already, or another merge was interrupted here. Nothing has changed then.
    """
    check_how(how, density)
    read = [_read(Path(folder)) for folder in adapters]
    if not read:
        raise ValueError("adapters is empty: name the folders of those to be merged")
    for one in read:
        if one.base != read[0].base:
            raise ValueError(
                f"adapters of different base: {read[0].folder} of {read[0].base}, {one.folder} of {one.base}"
            )
    check_same({one.folder: {name: (*B.shape, A.shape[1]) for name, (B, A) in one.pairs.items()} for one in read})
    directory = Path(directory)
    places = _locate(directory, read)
    transposed = _transposed(places, read[0])
    shards: dict[Path, list[str]] = defaultdict(list)
    for name in sorted(places):
        shards[places[name].file].append(name)
    digest = hashlib.sha256(json.dumps([how, density, *(one.digest for one in read)]).encode()).hexdigest()
    waiting = _waiting(directory, sorted(shards), digest)
    for shard in tqdm(waiting, "merging", unit="shard", leave=False, disable=None):
        with safe_open(shard, framework="pt") as file:
            metadata = dict(file.metadata() or {})
        tensors = load_file(shard)
        for name in shards[shard]:
            B, A = (torch.stack(factors) for factors in zip(*(one.pairs[name] for one in read)))
            W = tensors[places[name].name]
            merge(W.mT if name in transposed else W, B, A, how, density)
        metadata[MERGED] = json.dumps([*_history(metadata), [digest, [one.name for one in sorted(shards)]]])
        with replacing(shard) as partial:
            save_file(tensors, partial, metadata)
    return waiting


def _read(folder: Path) -> Adapter:
    if not (folder / WEIGHTS).is_file() or not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"no adapter in {folder}: save_pretrained() writes {CONFIG} and {WEIGHTS}")
    config = _config(folder)
    try:
        factors = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS} is truncated or damaged ({error}): save it again") from error
    pairs, copies, scalings = {}, {}, {}
    for key in sorted(factors):
        module, found, factor = key.removeprefix(PREFIX).rpartition(".lora_")
        if not found:
            copies[key.removeprefix(PREFIX).replace(".base_layer", "")] = factors[key]
            continue
        A, B = (factors.get(f"{PREFIX}{module}.lora_{each}.weight") for each in "AB")
        if factor in ("A.weight", "B.weight") and (A is None or B is None):
            raise ValueError(f"{folder} holds {key} without its lora_{'A' if A is None else 'B'}: save it again")
        if A is None or B is None or A.ndim != 2 or B.ndim != 2 or B.shape[1] != len(A):
            raise TypeError(f"{folder} holds {key} {tuple(factors[key].shape)}, which is no factor of a linear layer")
        patterns = config["alpha_pattern"] or {}
        alpha = patterns.get(get_pattern_key(list(patterns), module), config["lora_alpha"])
        scalings[module] = alpha / (len(A) ** 0.5 if config["use_rslora"] else len(A))
        check_finite(str(folder), module, B, A)
        # in 16 bits the product would be rounded before it is merged
        pairs[f"{module}.weight"] = (scalings[module] * wide(B), A)
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes() + json.dumps(scalings).encode()).hexdigest()
    return Adapter(str(folder), config["base_model_name_or_path"], config["fan_in_fan_out"], pairs, copies, digest)


def _config(folder: Path) -> dict[str, Any]:
    """Return the settings of an adapter; TypeError, by name, where they are more than plain LoRA's."""
    default = vars(LoraConfig())
    # as it was written: PEFT would leave out what it does not know
    config = default | json.loads((folder / CONFIG).read_text())
    other = {key: one for key, one in config.items() if one and key not in SUPPORTED and one != default.get(key)}
    if config["peft_type"] != "LORA":
        other = {"peft_type": config["peft_type"]}
    if other:
        named = ", ".join(f"{key}={value!r}" for key, value in other.items())
        raise TypeError(f"{folder} is no plain LoRA ({named}): load the model and let PEFT merge it, where it can")
    if config["init_lora_weights"] not in BEGINNINGS:
        raise TypeError(
            f"{folder} began as {config['init_lora_weights']}, which changed the base model's weights: save it with "
            "path_initial_model_for_weight_conversion, or merge the loaded model by merge_and_unload"
        )
    return config


def _locate(directory: Path, adapters: Sequence[Adapter]) -> dict[str, Saved]:
    """Return the tensor of each weight; ValueError where one is missing, tied, or no single tensor of a shard."""
    stored, model = stored_parameters(directory)
    # names of earlier versions of transformers may be those in the files
    as_saved = {one.saved.name: name for name, one in stored.items() if one.saved is not None}
    held: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False) if model is not None else ():
        held[id(parameter)].append(name)
    tied = {name: several for several in held.values() for name in several if len(several) > 1}
    places, missing = {}, []
    for name in {**adapters[0].pairs, **{name: None for one in adapters for name in one.copies}}:
        if known := find_name(name, tied):
            raise ValueError(
                f"{directory} holds {name} tied ({some(tied[known])}): merging would change all of them. Save the "
                "model with tie_word_embeddings=False and a weight for each first"
            )
        found = find_name(name, stored) or as_saved.get(name)
        if found is None:
            missing.append(name)
        elif (saved := stored[found].saved) is None:
            raise ValueError(f"{found} is made of several tensors in {directory}: merge the model by merge_and_unload")
        else:
            places[name] = saved
    if missing:
        raise ValueError(f"{directory} lacks {len(missing)} of the adapters' weights, so {missing[0]}")
    for one in adapters:
        for name, copied in one.copies.items():
            if not torch.equal(places[name].read(), copied):
                raise ValueError(
                    f"{one.folder} holds another {name} than {directory}: merge the model by merge_and_unload"
                )
    return {name: places[name] for name in adapters[0].pairs}


def _transposed(places: dict[str, Saved], adapter: Adapter) -> set[str]:
    """Return the weights that are kept as ``[d_in, d_out]`` (Conv1D): by shape, square ones by the configuration.

    Of Conv1D beside Linear the configuration tells only what the last module was.
    """
    turned: dict[str, bool] = {}
    for name, saved in places.items():
        B, A = adapter.pairs[name]
        fits = (len(B), A.shape[1])
        if saved.dtype not in FLOATS:
            raise TypeError(f"{name} is kept as {saved.dtype}: merge into weights of {', '.join(FLOATS)}")
        if saved.shape not in (fits, fits[::-1]):
            raise ValueError(f"{saved.file} holds {name} {saved.shape}, of another model than the adapters' {fits}")
        if len(B) != A.shape[1]:
            turned[name] = saved.shape != fits
    square = [name for name in places if name not in turned]
    if square and (not adapter.transposed) in turned.values():
        raise ValueError(
            f"{adapter.folder} acts on Linear beside Conv1D, and of the square {square[0]} nothing says which it is: "
            "merge the loaded model by merge_and_unload"
        )
    return {name for name in places if turned.get(name, adapter.transposed)}


def _waiting(directory: Path, shards: Sequence[Path], digest: str) -> list[Path]:
    """Return the shards that this merge has not reached; ValueError where none is left, or another was cut off."""
    histories = {}
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, framework="pt") as shard:
            histories[file.name] = dict(_history(shard.metadata() or {}))
    for merged, names in [entry for history in histories.values() for entry in history.items()]:
        if merged != digest and any(merged not in histories.get(name, {}) for name in names):
            raise ValueError(f"another merge was interrupted in {directory}: finish it by its own call first")
    waiting = [file for file in shards if digest not in histories[file.name]]
    if not waiting:
        raise ValueError("these adapters have been merged into this model already: merge into the original again")
    return waiting


def _history(metadata: dict[str, str]) -> list[tuple[str, list[str]]]:
    return json.loads(metadata.get(MERGED, "[]"))
