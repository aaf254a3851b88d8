"""Adapters as PEFT saves them, merged into the safetensors shards of their base model, one shard at a time."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from gsr_kernels.adapters.merging import DENSITY, How, check_finite, check_how, merge
from gsr_kernels.io.atomic import replacing

WEIGHTS, PREFIX = "adapter_model.safetensors", "base_model.model."
# in a shard's metadata: what was merged into it, oldest first, each with the names of all shards of that merge
MERGED = "gsr_kernels.merged"
DTYPES = ("F64", "F32", "BF16", "F16")
# what PEFT calls beginnings that change the base model's weights too
CHANGING = ("pissa", "olora", "corda", "loftq")

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Saved:
    """One adapter's folder: ``scaling · B`` and A of each weight by name, and the base model.

    ``transposed`` is what its configuration says of Conv1D: of all modules what is true of the last one.
    """

    folder: str
    base: str | None
    transposed: bool
    pairs: dict[str, Pair]
    digest: str


def merge_files(
    directory: str | os.PathLike[str],
    adapters: Sequence[str | os.PathLike[str]],
    how: How = "magnitude",
    density: float = DENSITY,
) -> list[Path]:
    """Merge saved adapters into the shards of a saved model, in place, on the CPU.

    Every shard is replaced whole by a file that was written beside it, so that an interruption leaves the old file. A
    merge that was interrupted between two shards is finished by the same call: a shard's metadata says what was merged
    into it. One shard at a time is in memory.

    Args:
        directory: holds ``*.safetensors`` as ``save_pretrained`` writes them.
        adapters: folders as ``PeftModel.save_pretrained`` writes them, oldest first.
        how, density: see ``merging.merge``.

    Returns:
        The shards that were written.

    Raises:
        FileNotFoundError: there are no shards, or a folder holds no adapter.
        TypeError: an adapter is no plain LoRA of linear layers, or began with a change of the base model (PiSSA, OLoRA,
            CorDA, LoftQ); a weight is quantised.
        ValueError: how or density is out of range; adapters differ in base, rank or modules, or hold NaN or Inf; a
            shard or an adapter is damaged; a weight is missing or has another shape; all of it has been merged already,
            or another merge was interrupted here. Nothing has changed then.
    """
    check_how(how, density)
    saved = [_read(folder) for folder in adapters]
    _check_same_kind(saved)
    shards = _shards(directory, set(saved[0].pairs))
    transposed = _transposed(shards, saved[0])
    digest = hashlib.sha256(json.dumps([how, density, *(one.digest for one in saved)]).encode()).hexdigest()
    names = [shard.name for shard in shards]
    waiting = _waiting(Path(directory), shards, digest)
    for shard in tqdm(waiting, "merging", unit="shard", leave=False, disable=None):
        with safe_open(shard, framework="pt") as file:
            metadata = dict(file.metadata() or {})
        tensors = load_file(shard)
        for name in shards[shard]:
            B, A = (torch.stack(factors) for factors in zip(*(one.pairs[name] for one in saved)))
            W = tensors[name]
            merge(W.mT if name in transposed else W, B, A, how, density)
        metadata[MERGED] = json.dumps([*_history(metadata), [digest, names]])
        with replacing(shard) as partial:
            save_file(tensors, partial, metadata)
            shutil.copymode(shard, partial)
    return waiting


def _read(folder: str | os.PathLike[str]) -> Saved:
    path = Path(folder)
    if not (path / WEIGHTS).is_file() or not (path / "adapter_config.json").is_file():
        raise FileNotFoundError(f"no adapter in {path}: save_pretrained() writes adapter_config.json and {WEIGHTS}")
    config = PeftConfig.from_pretrained(str(path))
    if not isinstance(config, LoraConfig) or config.use_dora or config.lora_bias:
        raise TypeError(f"{path} holds no plain LoRA, which alone is B A")
    if str(config.init_lora_weights).lower().startswith(CHANGING):
        raise TypeError(
            f"{path} began as {config.init_lora_weights}, which changed the base model's weights: save it with "
            "path_initial_model_for_weight_conversion"
        )
    try:
        factors = load_file(path / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{path / WEIGHTS} is truncated or damaged ({error}): save it again") from error
    pairs, scalings = {}, {}
    for key in sorted(factors):
        module, found, _ = key.removeprefix(PREFIX).partition(".lora_A.weight")
        if not found:
            if ".lora_B.weight" not in key:
                raise TypeError(f"{path} holds {key}, which is no factor of a linear layer")
            if key.replace("lora_B", "lora_A") not in factors:
                raise ValueError(f"{path} holds {key} without its lora_A: save it again")
            continue
        A, B = factors[key], factors.get(key.replace("lora_A", "lora_B"))
        if B is None:
            raise ValueError(f"{path} holds {key} without its lora_B: save it again")
        if A.ndim != 2 or B.ndim != 2 or B.shape[1] != len(A):
            raise TypeError(f"{path} holds {key} {tuple(A.shape)}, which is no factor of a linear layer")
        patterns = config.alpha_pattern or {}
        alpha = patterns.get(get_pattern_key(list(patterns), module), config.lora_alpha)
        scaling = alpha / (A.shape[0] ** 0.5 if config.use_rslora else A.shape[0])
        check_finite(str(path), module, B, A)
        # in 16 bits the product would be rounded before it is merged
        pairs[f"{module}.weight"] = (scaling * B.to(torch.promote_types(B.dtype, torch.float32)), A)
        scalings[module] = scaling
    digest = hashlib.sha256((path / WEIGHTS).read_bytes() + json.dumps(scalings).encode()).hexdigest()
    return Saved(str(path), config.base_model_name_or_path, config.fan_in_fan_out, pairs, digest)


def _check_same_kind(saved: Sequence[Saved]) -> None:
    if not saved:
        raise ValueError("adapters is empty: name the folders of those to be merged")
    first = saved[0]
    for one in saved[1:]:
        if one.base != first.base:
            raise ValueError(f"adapters of different base: {first.folder} of {first.base}, {one.folder} of {one.base}")
        if different := sorted(set(one.pairs) ^ set(first.pairs)):
            raise ValueError(f"{first.folder} and {one.folder} differ in their modules: {different[0]}")
        for name, (B, A) in one.pairs.items():
            first_B, first_A = first.pairs[name]
            if len(A) != len(first_A):
                ranks = f"{first.folder} has {len(first_A)} and {one.folder} {len(A)}"
                raise ValueError(f"adapters of different rank: at {name} {ranks}")
            if B.shape != first_B.shape or A.shape != first_A.shape:
                raise ValueError(f"{first.folder} and {one.folder} belong to weights of different shapes at {name}")


def _shards(directory: str | os.PathLike[str], names: set[str]) -> dict[Path, list[str]]:
    """Return the weights that each shard holds of those asked for, without the shards that hold none."""
    files = sorted(Path(directory).glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"no *.safetensors in {os.fspath(directory)}: save the model with save_pretrained()")
    held = {file: names.intersection(_names(file)) for file in files}
    missing = sorted(names.difference(*held.values()))
    if missing:
        raise ValueError(f"{os.fspath(directory)} lacks {len(missing)} of the adapters' weights, so {missing[0]}")
    return {file: sorted(found) for file, found in held.items() if found}


def _names(file: Path) -> list[str]:
    try:
        with safe_open(file, framework="pt") as shard:
            return list(shard.keys())
    except SafetensorError as error:
        raise ValueError(f"{file} is truncated or damaged ({error}): fetch it again") from error


def _transposed(shards: dict[Path, list[str]], saved: Saved) -> set[str]:
    """Return the weights that are kept as ``[d_in, d_out]`` (Conv1D): by shape, square ones by the configuration.

    Raises TypeError for a quantised weight, ValueError for one of another shape, and for square ones where the
    configuration is not true of all others: it tells of Conv1D beside Linear only what the last module was.
    """
    square: list[str] = []
    transposed: set[str] = set()
    upright: set[str] = set()
    for file, names in shards.items():
        with safe_open(file, framework="pt") as shard:
            for name in names:
                weight, (B, A) = shard.get_slice(name), saved.pairs[name]
                shape, fits = tuple(weight.get_shape()), (len(B), A.shape[1])
                if weight.get_dtype() not in DTYPES:
                    raise TypeError(
                        f"{name} is kept as {weight.get_dtype()}: merge into weights of {', '.join(DTYPES)}"
                    )
                if shape not in (fits, fits[::-1]):
                    raise ValueError(f"{file} holds {name} {shape}, the adapters belong to {fits}: another base model")
                if len(B) == A.shape[1]:
                    square.append(name)
                else:
                    (upright if shape == fits else transposed).add(name)
    if square and (upright if saved.transposed else transposed):
        raise ValueError(
            f"{saved.folder} acts on Linear beside Conv1D, and of the square {square[0]} nothing says which it is: "
            "merge the loaded model by merge_and_unload"
        )
    return transposed.union(square if saved.transposed else [])


def _waiting(directory: Path, shards: dict[Path, list[str]], digest: str) -> list[Path]:
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
