"""Stored bases of weights that several ranks hold: a file, or a directory that any number of ranks reads."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from gsr_kernels.basis import SpectralBasis, split_shape
from gsr_kernels.distributed.agreement import common_layout, on_rank0, run_on_all_ranks
from gsr_kernels.distributed.flat import ListedLayout
from gsr_kernels.distributed.layout import Layout, shape_of, slices
from gsr_kernels.distributed.schemes import factor_shapes
from gsr_kernels.distributed.shard import as_shard, metadata
from gsr_kernels.io.atomic import locked
from gsr_kernels.io.bases_file import FACTORS, FORMAT, FORMAT_VERSION, before, check_folder, file_entries, load_bases
from gsr_kernels.weight import Weight

ENTRIES = "entries"


def read_shared(path: str | os.PathLike[str], weights: Sequence[Weight]) -> dict[str, SpectralBasis | None]:
    """Return this rank's shards of stored bases, None for another shape; raises as ``load_bases``, on all ranks."""
    read = _read_directory if Path(path).is_dir() else _read_file
    return run_on_all_ranks(lambda: read(path, weights), [weight.scheme.layout for weight in weights])


def write_shared(path: str | os.PathLike[str], weights: Sequence[Weight], settings: Mapping[str, str]) -> None:
    """Write the bases of all weights to a directory, which appears whole or not at all; every rank must call it.

    Of two groups that write to one path at once the later one's stay. Raises FileNotFoundError where its folder is not
    there, ValueError where no mesh holds the ranks of all weights, RuntimeError where one rank cannot write.
    """
    path = Path(path).absolute()
    layouts = [weight.scheme.layout for weight in weights]
    writers = common_layout(layouts)
    run_on_all_ranks(lambda: check_folder(path), layouts)
    # another group may write there as well
    partial, old = path.with_name(f".{path.name}.{writers.ranks[0]}.partial"), before(path)
    state: dict[str, Any] = {}
    entries = {}
    for weight in weights:
        basis = weight.basis
        entries[weight.name] = metadata(basis)
        shapes = factor_shapes(split_shape(weight.scheme.layout.shape, weight.heads)[0], basis.rank)
        for factor, layout in weight.scheme.factors(shapes).items():
            state[f"{weight.name}.{factor}"] = _as_stored(getattr(basis, factor), layout)
    text = json.dumps(
        {"format": FORMAT, "format_version": FORMAT_VERSION, "bases": entries, "settings": dict(settings)}
    )
    state[ENTRIES] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)

    def write() -> None:
        try:
            dcp.save(state, checkpoint_id=partial, process_group=writers.group)
        except CheckpointException as error:
            # of the first rank that failed: torch's own text holds a traceback of each
            rank, (cause, _) = next(iter(error.failures.items()))
            met = f"rank {rank} met {type(cause).__name__}: {cause}"
            raise RuntimeError(f"bases: {path} could not be written: {met}") from error

    on_rank0(lambda: _remove(partial), layouts)
    run_on_all_ranks(write, layouts)

    def take_its_place() -> None:
        # another group of this file system waits
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            locked(folder, wait=True)
            if path.exists():
                _remove(old)
                path.rename(old)
            # readers find the old ones until the new ones stand there
            partial.rename(path)
            _remove(old)
        finally:
            os.close(folder)

    on_rank0(take_its_place, layouts)


def _remove(path: Path) -> None:
    """Remove a directory, or a file, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _read_directory(path: str | os.PathLike[str], weights: Sequence[Weight]) -> dict[str, SpectralBasis | None]:
    with _damage_named(path):
        stored = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
        header = {ENTRIES: torch.empty(stored[ENTRIES].size, dtype=torch.uint8)}  # type: ignore[union-attr]
        # each rank finds its own shards, asking no other
        dcp.load(header, checkpoint_id=path, no_dist=True)
        text = json.loads(bytes(header[ENTRIES].tolist()))
        entries = file_entries(path, {**text, "bases": json.dumps(text["bases"])})
    # what is read, and as torch has it
    parts: dict[str, Tensor] = {}
    state: dict[str, Any] = {}
    wanted = []
    for weight in weights:
        if weight.name not in entries:
            continue
        found = {factor: stored[f"{weight.name}.{factor}"] for factor in FACTORS}
        shapes = {factor: one.size for factor, one in found.items()}  # type: ignore[union-attr]
        if _fits(weight, shapes, entries[weight.name]["head_dim"]):
            wanted.append(weight)
            for factor, layout in weight.scheme.factors(shapes).items():
                empty = torch.empty(shape_of(layout.block()), dtype=found[factor].properties.dtype)  # type: ignore[union-attr]
                parts[f"{weight.name}.{factor}"] = empty
                state[f"{weight.name}.{factor}"] = _as_stored(empty, layout)
    with _damage_named(path):
        dcp.load(state, checkpoint_id=path, no_dist=True)
    return {
        weight.name: as_shard(
            weight.scheme.layout,
            {factor: parts[f"{weight.name}.{factor}"] for factor in FACTORS},
            # what was written before sketches were kept does not say
            **{"randomized": False, **entries[weight.name]},
        )
        for weight in wanted
    }


@contextmanager
def _damage_named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raise ValueError for what torch meets in a damaged directory: its CheckpointException is no Exception."""
    try:
        yield
    except (OSError, KeyError, json.JSONDecodeError, CheckpointException) as error:
        raise ValueError(
            f"bases: {os.fspath(path)} was not written to its end, or is damaged, or holds other files; write it anew, "
            "or name a file"
        ) from error


def _read_file(path: str | os.PathLike[str], weights: Sequence[Weight]) -> dict[str, SpectralBasis | None]:
    found: dict[str, SpectralBasis | None] = {}
    for weight in weights:
        # of one weight at a time the whole factors, where a rank keeps shards of them
        for basis in load_bases(path, [weight.name]).values():
            shapes = {factor: getattr(basis, factor).shape for factor in FACTORS}
            found[weight.name] = None
            if _fits(weight, shapes, basis.head_dim):
                factors = {
                    factor: getattr(basis, factor)[slices(layout.block())].clone()
                    for factor, layout in weight.scheme.factors(shapes).items()
                }
                found[weight.name] = as_shard(weight.scheme.layout, factors, **metadata(basis))
    return found


def _fits(weight: Weight, shapes: Mapping[str, torch.Size], head_dim: int | None) -> bool:
    """Return True if factors of these shapes are those of a weight's matrices, of whatever rank."""
    matrices, expected = split_shape(weight.scheme.layout.shape, weight.heads)
    return (*shapes["U"][:-1], shapes["Vh"][-1]) == tuple(matrices) and head_dim == expected


class _Rows(Tensor):
    """Rows of a factor on this rank, as torch.distributed.checkpoint takes them; of shared rows one rank writes.

    Its methods are what torch asks a shard for.
    """

    placing: ListedLayout

    def size(self, dim: int | None = None) -> Any:
        return self.placing.shape if dim is None else self.placing.shape[dim]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return self._chunk(self.placing.block()[0][0])

    def __create_write_items__(self, name: str, _: object) -> list[WriteItem]:
        (first, _), columns = self.placing.block()
        own = first, self.placing.index
        # what begins before this rank's, in the same columns, is written by others
        written = [
            stop
            for index, ((start, stop), other) in enumerate(self.placing.blocks)
            if other == columns and (start, index) < own
        ]
        properties = TensorProperties.create_from_tensor(self.as_subclass(Tensor))
        return [
            WriteItem(
                MetadataIndex(name, chunk.offsets),
                WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk, properties, self.placing.shape),
            )
            for chunk in self._chunk(max([first, *written]))
        ]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        return self.as_subclass(Tensor)[(index.offset or (0,))[0] - self.placing.block()[0][0] :]

    def _chunk(self, first: int) -> list[ChunkStorageMetadata]:
        """Return this rank's rows from one on, in a list that is empty where there are none."""
        (_, last), (left, right) = self.placing.block()
        offsets, sizes = torch.Size((first, left)), torch.Size((last - first, right - left))
        return [ChunkStorageMetadata(offsets, sizes)] if last > first and right > left else []


def _as_stored(shard: Tensor, layout: Layout) -> Tensor:
    """Return a rank's shard as torch.distributed.checkpoint takes it."""
    if layout.mesh is None:
        return shard
    if isinstance(layout, ListedLayout):
        rows = shard.detach().as_subclass(_Rows)
        rows.placing = layout
        return rows
    from torch.distributed.tensor import DTensor

    stride = torch.empty(layout.shape, device="meta").stride()
    return DTensor.from_local(shard, layout.mesh, layout.placements, run_check=False, shape=layout.shape, stride=stride)
