"""The factors of a PEFT model's LoRA adapters, module by module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from gsr_kernels.adapters.stability import check_factor
from gsr_kernels.methods.base import wide


@dataclass(frozen=True, eq=False)
class Factors:
    """One module's share of one adapter, ``ΔW = scaling · B A`` with ``B [d_out, r]`` and ``A [r, d_in]``.

    They are the model's own parameters. ``layer`` is PEFT's, around the frozen weight, ``inner`` its module around A.
    """

    name: str
    layer: Any
    inner: nn.Module
    B: Tensor
    A: Tensor
    scaling: float

    @property
    def rank(self) -> int:
        return self.A.shape[0]

    @property
    def transposed(self) -> bool:
        """True of a frozen weight ``[d_in, d_out]`` (Conv1D)."""
        return bool(getattr(self.layer, "fan_in_fan_out", False))

    @property
    def weight(self) -> Any:
        """Frozen weight, a view ``[d_out, d_in]`` of it."""
        weight = self.layer.get_base_layer().weight.data
        return weight.mT if self.transposed else weight

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(d_out, r, d_in)``: modules of one shape are computed together."""
        return (*self.B.shape, self.A.shape[1])


def adapter_names(model: nn.Module) -> list[str]:
    """Return the LoRA adapters of a model, in the order in which they were added.

    Raises TypeError for what is no module, ValueError for a model without adapters.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    added, found = {}, {}
    for module in model.modules():
        if isinstance(module, LoraLayer):
            found.update(dict.fromkeys([*module.lora_A, *module.lora_embedding_A]))
        elif isinstance(configs := getattr(module, "peft_config", None), dict):
            added.update(dict.fromkeys(configs))
    # the modules' order would put an adapter that begins later in the model behind a newer one
    names = [*(name for name in added if name in found), *(name for name in found if name not in added)]
    if not names:
        raise ValueError("model has no LoRA adapter: peft.get_peft_model(model, LoraConfig(...)) gives it one")
    return names


def find_factors(model: nn.Module, adapter: str | None = None) -> list[Factors]:
    """Return the factors of one adapter, by default the last one that was added, in the order of the modules.

    Each holds ``B [d_out, r]`` and ``A [r, d_in]`` of one module, the model's own parameters, and its ``scaling``.

    Raises TypeError where model is no module, and ValueError where it has no adapter of this name. A module of the
    adapter raises TypeError where it is no linear layer, a variant of LoRA (DoRA, lora_bias), or sharded.
    """
    names = adapter_names(model)
    adapter = names[-1] if adapter is None else adapter
    if adapter not in names:
        raise ValueError(f"adapter must be one of {', '.join(names)}, got {adapter!r}")
    found = []
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer) or adapter not in {*layer.lora_A, *layer.lora_embedding_A}:
            continue
        base = layer.get_base_layer()
        # around one matrix: of no parameter by name, nor of attention's inner weights
        linear = not isinstance(layer, ParamWrapper) and (isinstance(base, Conv1D) or hasattr(base, "in_features"))
        if adapter not in layer.lora_A or not isinstance(layer.lora_A[adapter], nn.Linear) or not linear:
            kind = type(base).__name__
            raise TypeError(f"adapter {adapter!r} acts on {name}, a {kind}: only linear layers are supported")
        if layer.lora_B[adapter].bias is not None:
            raise TypeError(f"adapter {adapter!r} has a bias at {name}, which no merge can hold: use lora_bias=False")
        if adapter in layer.lora_variant:
            kind = type(layer.lora_variant[adapter]).__name__
            raise TypeError(f"adapter {adapter!r} is a {kind} at {name}: only plain LoRA is B A, use use_dora=False")
        B: Any = layer.lora_B[adapter].weight
        A: Any = layer.lora_A[adapter].weight
        for factor in (B, A):
            check_factor(name, factor)
        found.append(Factors(name, layer, layer.lora_A[adapter], B, A, float(layer.scaling[adapter])))
    return found


def same_modules(model: nn.Module, adapters: Sequence[str]) -> list[list[Factors]]:
    """Return the factors of several adapters, one list a module, each in the order of ``adapters``.

    Raises as ``find_factors``, and ValueError where one adapter has another rank in a module, or not its modules.
    """
    modules = {adapter: {one.name: one for one in find_factors(model, adapter)} for adapter in adapters}
    check_same({adapter: {name: one.shape for name, one in held.items()} for adapter, held in modules.items()})
    return [[modules[adapter][name] for adapter in adapters] for name in modules[adapters[0]]]


def check_same(shapes: Mapping[str, Mapping[str, tuple[int, ...]]]) -> None:
    """Raise ValueError where adapters differ in their modules, or in ``(d_out, r, d_in)`` of one."""
    first, *others = shapes
    for other in others:
        if different := sorted(set(shapes[first]) ^ set(shapes[other])):
            raise ValueError(f"adapters {first!r} and {other!r} differ in their modules: {different[0]}")
        for name, shape in shapes[first].items():
            if shape != shapes[other][name]:
                raise ValueError(
                    f"adapters of different rank or base: at {name} (d_out, r, d_in) is {shape} of {first!r} and "
                    f"{shapes[other][name]} of {other!r}. Give every task's LoraConfig the same r"
                )


def by_shape(rows: Iterable[list[Factors]]) -> list[list[list[Factors]]]:
    """Group modules of one shape, dtype and device."""
    groups: dict[tuple, list[list[Factors]]] = {}
    for row in rows:
        groups.setdefault((row[0].shape, row[0].A.dtype, row[0].A.device), []).append(row)
    return list(groups.values())


def stacked(group: Sequence[Factors]) -> tuple[Tensor, Tensor]:
    """Stack ``scaling · B [n, d_out, r]`` and ``A [n, r, d_in]`` of modules of one shape, with gradients.

    The first in float32 or better: in 16 bits a scaling would round it.
    """
    return torch.stack([one.scaling * wide(one.B) for one in group]), torch.stack([one.A for one in group])
