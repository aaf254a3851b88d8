"""The matrices of a model as its safetensors shards hold them, one by one, without building the model."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from gsr_kernels.io.bases_file import FORMAT

FLOATS = ("F64", "F32", "F16", "BF16")
# by name alone: embeddings, output heads, and what belongs to a weight
NOT_LINEAR = re.compile(r"(^|[._])(embed\w*|wte|wpe|lm_head|output_embeddings|lora_\w+)(\.|$)|bias$|norm")


@dataclass(frozen=True)
class Stored:
    """One matrix ``[.., d1, d2]`` in a shard."""

    name: str
    shape: tuple[int, ...]
    # of FLOATS
    dtype: str
    file: Path

    def read(self, device: str = "cpu") -> Tensor:
        """Read the tensor."""
        with safe_open(self.file, framework="pt", device=device) as shard:
            return shard.get_tensor(self.name)


def stored_matrices(directory: str | os.PathLike[str], targets: str | None = None) -> list[Stored]:
    """Return every float matrix of the shards in a directory, and batch of matrices (experts), by name.

    Bases files are skipped. Where the directory has an index of its shards, only what it names is read.

    Args:
        directory: holds ``*.safetensors``, as ``save_pretrained`` writes them.
        targets: a regular expression that matches whole names; by default all but embeddings and output heads.

    Raises FileNotFoundError where there are no shards, or one of the index is not there, ValueError where one is
    damaged, two hold the same tensor, targets is no regular expression or matches nothing.
    """
    try:
        re.compile(targets or "")
    except re.error as error:
        raise ValueError(f"targets {targets!r} is no regular expression: {error}") from error
    files = _shards(Path(directory))
    if not files:
        raise FileNotFoundError(f"no *.safetensors in {os.fspath(directory)}: save the model with save_pretrained()")
    found = sorted((stored for file in files for stored in _matrices(file)), key=lambda stored: stored.name)
    for one, other in pairwise(found):
        if one.name == other.name:
            raise ValueError(f"{one.name} is in {one.file} and in {other.file.name}: remove what is not the model's")
    matched = [stored for stored in found if _wanted(stored.name, targets)]
    if not matched:
        raise ValueError(
            f"targets matches none of {', '.join(stored.name for stored in found) or 'no matrices at all'}"
        )
    return matched


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


def _matrices(file: Path) -> Iterator[Stored]:
    try:
        with safe_open(file, framework="pt") as shard:
            if (shard.metadata() or {}).get("format") == FORMAT:
                return
            for name in shard.keys():  # noqa: SIM118
                entry = shard.get_slice(name)
                shape, dtype = tuple(entry.get_shape()), entry.get_dtype()
                if dtype in FLOATS and len(shape) in (2, 3) and min(shape) > 1:
                    yield Stored(name, shape, dtype, file)
    except SafetensorError as error:
        raise ValueError(f"{file} is truncated or damaged ({error}): fetch it again") from error


def _wanted(name: str, targets: str | None) -> bool:
    return not NOT_LINEAR.search(name) if targets is None else bool(re.fullmatch(targets, name))
