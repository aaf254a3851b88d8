"""Safetensors file that is written tensor by tensor, in any order: shapes and dtypes are known ahead."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import BinaryIO

import torch
from torch import Tensor

DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


class TensorFile:
    """Write to an open binary file of which nothing is written yet.

    Args:
        file: where to.
        tensors: a meta tensor, or any other of the same shape and dtype, in place of each that will be written.
        room: the most bytes that the metadata will take as JSON: it is written last.
    """

    def __init__(self, file: BinaryIO, tensors: Mapping[str, Tensor], room: int) -> None:
        self._file = file
        self._entries: dict[str, dict] = {}
        self._missing = set(tensors)
        end = 0
        # a reader maps elements in place: the wide ones come first, so that all are aligned
        for name in sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)):
            tensor = tensors[name]
            begin, end = end, end + math.prod(tensor.shape) * tensor.element_size()
            described = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
            self._entries[name] = described
        self._header = -(-(len(self._json({})) + room) // 8) * 8

    def write(self, name: str, tensor: Tensor) -> None:
        """Write one tensor, from any device; ValueError where it is another than was announced."""
        announced = self._entries[name]
        if [DTYPES.get(tensor.dtype), list(tensor.shape)] != [announced["dtype"], announced["shape"]]:
            raise ValueError(f"{name} was to be {announced}, got {tensor.dtype} {list(tensor.shape)}")
        self._file.seek(8 + self._header + announced["data_offsets"][0])
        self._file.write(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
        self._missing.discard(name)

    def finish(self, metadata: Mapping[str, str]) -> None:
        """Write the header; ValueError where a tensor is missing, or the metadata takes more than its room."""
        header = self._json(metadata)
        if self._missing or len(header) > self._header:
            raise ValueError(f"not written: {sorted(self._missing)}; a header of {len(header)} in {self._header} bytes")
        self._file.seek(0)
        # spaces after it are a part of the format
        self._file.write(struct.pack("<Q", self._header) + header.ljust(self._header))

    def _json(self, metadata: Mapping[str, str]) -> bytes:
        return json.dumps({"__metadata__": dict(metadata), **self._entries}, separators=(",", ":")).encode()
