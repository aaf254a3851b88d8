"""Which parameters of a model are matrices that a method can act on, and why the others are not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from gsr_kernels.messages import some

# where nothing but a name tells: embed_tokens, tok_embeddings, word_embeddings, wte, wpe, T5's shared
EMBEDDING_NAMES = re.compile(r"(^|[._])(emb|embed|embeddings?|embedder|wte|wpe|shared|relative_attention_bias)([._]|$)")
RECURRENT = re.compile(r"weight_[ih]h_l\d")
OUTPUT_NAMES = {"lm_head", "embed_out", "output_embeddings"}

WAYS_OUT = {
    "frozen": "requires_grad_(True) has them trained",
    "factor of an adapter": "train the dense weights without the adapter, or name the factors in targets",
    "embedding": "name them in targets to have them included",
    "output head": "name it in targets to have it included",
    "not in the optimizer": "build the optimizer with them, or name others in targets",
}


@dataclass(frozen=True)
class Target:
    """One parameter: matched where ``reason`` is None, else skipped for that reason."""

    name: str
    parameter: nn.Parameter
    heads: int | None = None
    reason: str | None = None


def find_targets(
    model: nn.Module | Mapping[str, nn.Parameter], targets: str | Iterable[str], trained: set[Tensor]
) -> list[Target]:
    """Every parameter of two or more dimensions, each once, matched or skipped with the reason.

    Args:
        model: names are its parameters', without the prefixes of torch.compile and DistributedDataParallel. Or its
            named parameters alone: embeddings and the output head are then told from other matrices by their names.
        targets: "all-linear": nn.Linear, transformers' Conv1D, MultiheadAttention's projections (q, k and v apart)
            and 3-D expert parameters, without embeddings and the output head. Else a regular expression that matches
            a whole module or parameter name, or a list of endings of such names.
        trained: the parameters that the optimizer holds.

    Raises ValueError where nothing is matched, listing what there is.
    """
    if not isinstance(targets, str):
        targets = list(targets) if isinstance(targets, Iterable) else [targets]
        if not all(isinstance(one, str) for one in targets):
            raise ValueError(f"targets must be 'all-linear', a regular expression or a list of names, got {targets!r}")
    found: list[Target] = []
    seen: dict[Tensor, str] = {}
    output = _output_embedding(model)
    for name, module, parameter in _parameters(model):
        if parameter.ndim < 2:
            continue
        heads = 3 if isinstance(module, nn.MultiheadAttention | None) and name.endswith("in_proj_weight") else None
        reason = _unusable(parameter, trained)
        if parameter in seen:
            reason = f"tied to {seen[parameter]}"
        elif reason is None and targets == "all-linear":
            reason = _not_linear(module, name, parameter, output)
        elif reason is None and not _matches(name, targets):
            reason = "not in targets"
        seen.setdefault(parameter, name)
        found.append(Target(name, parameter, heads, reason))
    if all(target.reason for target in found):
        raise ValueError(f"targets={targets!r} matches no trained matrix of the model. There is:\n{_overview(found)}")
    return found


def _parameters(
    model: nn.Module | Mapping[str, nn.Parameter],
) -> Iterator[tuple[str, nn.Module | None, nn.Parameter]]:
    """Every parameter with its name and the module that holds it, where there is one; tied ones as often as named."""
    if isinstance(model, Mapping):
        yield from ((_plain(name), None, parameter) for name, parameter in model.items())
        return
    for prefix, module in model.named_modules():
        for local, parameter in module.named_parameters(recurse=False):
            yield _plain(f"{prefix}.{local}" if prefix else local), module, parameter


def _overview(found: list[Target]) -> str:
    """A line for every reason, with the way out and the first matrices that it holds for."""
    by_reason: dict[str, list[str]] = {}
    for target in found:
        by_reason.setdefault(target.reason or "", []).append(f"{target.name} {tuple(target.parameter.shape)}")
    lines = []
    for reason, matrices in by_reason.items():
        note = f"{reason}: {WAYS_OUT[reason]}" if reason in WAYS_OUT else reason
        lines.append(f"  {note}\n    {some(matrices)}")
    return "\n".join(lines) or "  no matrix at all"


def _unusable(parameter: Tensor, trained: set[Tensor]) -> str | None:
    if not parameter.is_floating_point():
        return f"quantised ({parameter.dtype}): load the model in a float dtype"
    if not parameter.requires_grad:
        return "frozen"
    if parameter not in trained:
        return "not in the optimizer"
    return None if parameter.numel() else "empty"


def _not_linear(module: nn.Module | None, name: str, parameter: Tensor, output: Tensor | None) -> str | None:
    named = module is None and EMBEDDING_NAMES.search(name)
    if named or isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "embedding"
    if parameter is output or OUTPUT_NAMES & set(name.split(".")):
        return "output head"
    if ".lora_" in name:
        return "factor of an adapter"
    if module is None:
        linear = (parameter.ndim == 2 and not RECURRENT.search(name)) or "expert" in name
        return None if linear else "not linear, by its name and dimensions"
    conv1d = type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers")
    linear = isinstance(module, nn.Linear | nn.MultiheadAttention) or conv1d
    # convolutions and bilinear forms are 3-D too
    experts = parameter.ndim == 3 and parameter.shape[0] > 1 and not isinstance(module, _ConvNd | nn.Bilinear)
    return None if (linear and parameter.ndim == 2) or experts else f"{type(module).__name__} is not linear"


def _matches(name: str, targets: str | Iterable[str]) -> bool:
    names = (name, name.rpartition(".")[0])
    if isinstance(targets, str):
        try:
            return any(re.fullmatch(targets, one) for one in names)
        except re.error as error:
            raise ValueError(f"targets: {targets!r} is no regular expression: {error}") from error
    return any(one == ending or one.endswith(f".{ending}") for one in names for ending in targets)


def _output_embedding(model: nn.Module | Mapping[str, nn.Parameter]) -> Tensor | None:
    get = getattr(model, "get_output_embeddings", None)
    return getattr(get(), "weight", None) if callable(get) else None


def _plain(name: str) -> str:
    return name.replace("_orig_mod.", "").removeprefix("module.")
