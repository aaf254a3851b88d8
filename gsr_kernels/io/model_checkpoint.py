"""The tensors of a saved model in its safetensors shards, by their names there."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gsr_kernels.io.bases_file import DTYPES, FORMAT

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
