"""The models whose linear layers are measured: their configurations, without weights."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# as transformers' LlamaConfig takes them
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "falcon3-1b": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 18, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 131072,
    },
    "llama3-8b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256,
    },
    # for a CPU
    "small": {
        "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 4096,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Model:
    """``shapes``: how many matrices of each (d1, d2) the linear layers have; ``config``: for transformers."""

    name: str
    shapes: Mapping[tuple[int, int], int]
    config: Mapping[str, Any]

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """Return every matrix."""
        return [shape for shape, count in self.shapes.items() for _ in range(count)]


def model(name: str, layers: int | None = None) -> Model:
    """Return a model of ``CONFIGURATIONS``, or of a config.json, of its first ``layers`` alone.

    Raises ValueError for a name that is neither and for less than one layer, FileNotFoundError for a file that is not
    there, ModuleNotFoundError where a config.json needs transformers and they are not installed.
    """
    if layers is not None and layers < 1:
        raise ValueError(f"--layers must be at least 1, got {layers}")
    if name not in CONFIGURATIONS:
        return _from_file(Path(name), layers)
    config = CONFIGURATIONS[name]
    if layers is not None:
        config = {**config, "num_hidden_layers": min(layers, config["num_hidden_layers"])}
    return Model(name, llama_shapes(config), {"model_type": "llama", **config})


def llama_shapes(config: Mapping[str, Any]) -> dict[tuple[int, int], int]:
    """Return the matrices of a Llama: q, k, v, o, gate, up and down of every layer."""
    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = head * config["num_attention_heads"], head * config["num_key_value_heads"]
    of_a_layer = [(queries, hidden), (keys, hidden), (keys, hidden), (hidden, queries)]
    of_a_layer += [(inner, hidden), (inner, hidden), (hidden, inner)]
    return {shape: of_a_layer.count(shape) * config["num_hidden_layers"] for shape in dict.fromkeys(of_a_layer)}


def _from_file(path: Path, layers: int | None) -> Model:
    path = path / "config.json" if path.is_dir() else path
    if path.suffix != ".json":
        raise ValueError(
            f"--model must be one of {', '.join(CONFIGURATIONS)}, or a model's folder or CONFIG.json, got {path}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"--model: there is no file {path}")
    config = json.loads(path.read_text())
    if "model_type" not in config:
        raise ValueError(f"--model: {path} names no model_type: give the config.json of a transformers model")
    from transformers import AutoConfig

    from gsr_kernels.cli.floors import kinds_of
    from gsr_kernels.io.saved_model import build_config

    if layers is not None:
        config["num_hidden_layers"] = min(layers, config.get("num_hidden_layers", layers))
    kinds = kinds_of(build_config(AutoConfig.for_model(**config)))
    shapes: Counter[tuple[int, int]] = Counter()
    for kind in kinds:
        shapes[kind.d1, kind.d2] += kind.weights * kind.experts
    # a config.json is named by its folder
    name = path.resolve().parent.name if path.stem == "config" else path.stem
    return Model(name, shapes, config)
