"""Parameters of a model that are matrices for a method to act on, and why the others are not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from gsr_kernels.checks import check_pattern
from gsr_kernels.distributed.flat import FlatModel, FlatShard, held_parameters
from gsr_kernels.messages import some

# the parameters of linear layers: nn.Linear's and Conv1D's, MultiheadAttention's
LINEAR_PARAMETERS = {"weight", "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"}
LINEAR_CLASS = re.compile(r"Linear|Conv1D$")
# the module that holds packed experts, [experts, .., ..], and JetMoE's pair, which has an ordinary name
EXPERTS = re.compile(r"(^|_)experts$")
JET_EXPERTS = re.compile(r"(^|\.)(input_linear|output_linear)\.weight$")
ROUTERS = {"router", "routers", "shared_expert_gate"}
# a module's own name: embed_tokens, word_embeddings, wte, relative_attention_bias, T5's shared
EMBEDDING = re.compile(
    r"(^|_)(emb|embs|embed|embeds|embedding|embeddings|embedder|wte|wpe)([_0-9]|$)|embedder_\d+$|_tokens?$|^codebook$"
    r"|^(shared|relative_attention_bias)$",
    re.IGNORECASE,
)
NORMS = re.compile(r"(^|_)(norm|layernorm|layer_norm|ln)([_0-9]|$)", re.IGNORECASE)
HEADS = {
    "lm_head", "lm_heads", "embed_out", "output_embeddings", "score", "classifier", "qa_outputs", "pooler",
    "class_embed", "bbox_embed", "bbox_predictor",
}  # fmt: skip
# what wrappers put into names
WRAPPERS = re.compile(r"(_orig_mod|_checkpoint_wrapped_module|_forward_module|_fsdp_wrapped_module)\.")

FROZEN, NOT_HELD = "frozen", "not in the optimizer"
WAYS_OUT = {
    FROZEN: "requires_grad_(True) has them trained",
    "factor of an adapter": "train the dense weights without the adapter, or name the factors in targets",
    "embedding": "name them in targets to have them included",
    "head": "name it in targets to have it included",
    "outside the repeated layers": "name them in targets to have them included",
    "router of experts": "name them in targets to have them included",
    NOT_HELD: "build the optimizer with them, or name others in targets",
}


@dataclass(frozen=True)
class Target:
    """One parameter: matched where ``reason`` is None, else skipped for that reason."""

    name: str
    parameter: nn.Parameter
    heads: int | None = None
    reason: str | None = None
    # whether it would be matched if it were trained
    eligible: bool = True


def find_targets(
    model: nn.Module | Mapping[str, nn.Parameter] | FlatModel, targets: str | Iterable[str], trained: set[Tensor]
) -> list[Target]:
    """List every parameter of two or more dimensions, each once, matched or skipped with the reason.

    One rule decides, by names and dimensions, of a model and of named parameters alone; the types of a model's modules
    only ever leave out more.

    Args:
        model: or its named parameters; names lose the prefixes of torch.compile and other wrappers.
        targets: "all-linear": the linear matrices of the repeated layers (nn.Linear, transformers' Conv1D,
            MultiheadAttention's projections with q, k and v apart) and packed experts. Heads over labels or tokens,
            embeddings, routers and what lies outside the repeated layers are left to the optimizer. Else a regular
            expression that matches a whole module or parameter name, or a list of endings of such names.
        trained: the parameters that the optimizer holds.

    Raises ValueError where nothing is matched, listing what there is, and for a convolution that targets names.
    """
    if not isinstance(targets, str):
        several = list(targets) if isinstance(targets, Iterable) and not isinstance(targets, Tensor) else None
        if several is None or not all(isinstance(one, str) for one in several):
            raise ValueError(
                f"targets must be a regular expression or a list of name endings, got {targets!r}; leave it out for "
                "'all-linear'"
            )
        targets = several
    found: list[Target] = []
    seen: dict[Tensor, str] = {}
    parameters = list(named_parameters(model))
    names, outputs = Names(name for name, _, _ in parameters), _output_embeddings(model)
    for name, module, parameter in parameters:
        if parameter.ndim < 2:
            continue
        heads = 3 if isinstance(module, nn.MultiheadAttention | None) and name.endswith("in_proj_weight") else None
        if targets == "all-linear":
            rule = names.reason(name, parameter.shape) or (
                "head" if parameter in outputs else _no_linear(module, parameter)
            )
        else:
            rule = None if _matches(name, targets) else "not in targets"
            # by its name alone, a stack of matrices has one of its own
            by_name = module is None and parameter.ndim > 3 and name.rpartition(".")[2] == "weight"
            if rule is None and (by_name or isinstance(module, _ConvNd)):
                raise ValueError(
                    f"targets names {name} {tuple(parameter.shape)}, the kernel of a convolution, which is no matrix: "
                    "leave it out"
                )
        reason = f"tied to {seen[parameter]}" if parameter in seen else _unusable(parameter, trained) or rule
        seen.setdefault(parameter, name)
        found.append(Target(name, parameter, heads, reason, rule is None))
    if all(target.reason for target in found):
        raise ValueError(f"targets={targets!r} matches no trained matrix of the model. There is:\n{_overview(found)}")
    return found


def linear_matrices(model: nn.Module) -> list[Target]:
    """Return what "all-linear" matches where an optimizer holds the whole model."""
    return [target for target in find_targets(model, "all-linear", set(model.parameters())) if target.reason is None]


def named_parameters(
    model: nn.Module | Mapping[str, nn.Parameter] | FlatModel,
) -> Iterator[tuple[str, nn.Module | None, nn.Parameter]]:
    """Yield every parameter after its name and the module that holds it, where there is one; tied ones as often."""
    if isinstance(model, Mapping):
        yield from ((_plain(name), None, parameter) for name, parameter in model.items())
        return
    for name, module, parameter in model.parameters() if isinstance(model, FlatModel) else held_parameters(model):
        yield _plain(name), module, parameter


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
    if parameter.is_complex():
        return f"complex ({parameter.dtype}): a method takes real weights, such as torch.view_as_real of it"
    if not parameter.is_floating_point():
        return f"quantised ({parameter.dtype}): load the model in a float dtype"
    if not parameter.requires_grad:
        return FROZEN
    if parameter not in trained:
        return NOT_HELD
    return None if parameter.numel() else "empty"


class Names:
    """The rule by names: which parameters are matrices of the repeated layers, among all names of a model."""

    def __init__(self, names: Iterable[str]) -> None:
        paths = [name.split(".") for name in names]
        # of a model inside a wrapper all names begin alike
        shared = 0
        while paths and all(len(path) > shared + 2 for path in paths):
            if len({path[shared] for path in paths}) > 1 or paths[0][shared].isdigit():
                break
            shared += 1
        self._shared = shared
        self._layers = {path[shared] for path in paths if any(part.isdigit() for part in path[shared:-1])}
        self._modules = {".".join(path[:end]) for path in paths for end in range(1, len(path))}

    def reason(self, name: str, shape: torch.Size) -> str | None:
        """Return why a parameter is none of "all-linear", or None where it is one."""
        *path, own = name.split(".")
        if ".lora_" in name or self._adapted(path):
            return "factor of an adapter"
        named = [part for part in path if not part.isdigit()]
        module = named[-1] if named else ""
        if HEADS & set(path) and not ROUTERS & set(path):
            return "head"
        if ROUTERS & set(path) or (module in ("gate", "wg") and self._beside_experts(path)):
            return "router of experts"
        if EMBEDDING.search(module):
            return "embedding"
        if len(shape) == 3:
            packed = shape[0] > 1 and (
                (any(map(EXPERTS.search, (module, own))) and not own.endswith("bias")) or JET_EXPERTS.search(name)
            )
            return None if packed else "not linear, by its name and dimensions"
        if len(shape) != 2 or own not in LINEAR_PARAMETERS or any(map(NORMS.search, named[-2:])):
            return "not linear, by its name and dimensions"
        if self._layers and len(path) > self._shared and path[self._shared] not in self._layers:
            return "outside the repeated layers"
        return None

    def _adapted(self, path: list[str]) -> bool:
        """Return whether a module that the parameter is in, or beside, wraps a base layer, as PEFT's do."""
        if "base_layer" in path:
            return False
        return any(".".join([*path[:end], "base_layer"]) in self._modules for end in range(1, len(path) + 1))

    def _beside_experts(self, path: list[str]) -> bool:
        around = ".".join(path[:-1])
        return any(f"{around}.{name}" in self._modules for name in ("experts", "shared_expert", "shared_experts"))


def _no_linear(module: nn.Module | None, parameter: Tensor) -> str | None:
    """Return why the type of a module says that its parameter is no linear layer's, None without a module."""
    if module is None:
        return None
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "embedding"
    # other libraries' linear layers are no subclasses, and say what they are by name
    linear = isinstance(module, nn.Linear | nn.MultiheadAttention) or LINEAR_CLASS.search(type(module).__name__)
    return None if linear or parameter.ndim != 2 else f"{type(module).__name__} is not linear"


def _matches(name: str, targets: str | Iterable[str]) -> bool:
    names = (name, name.rpartition(".")[0])
    if isinstance(targets, str):
        pattern = check_pattern("targets", targets)
        return any(pattern.fullmatch(one) for one in names)
    return any(one == ending or one.endswith(f".{ending}") for one in names for ending in targets)


def _output_embeddings(model: nn.Module | Mapping[str, nn.Parameter] | FlatModel) -> set[Tensor]:
    """The weights that a model, or one inside a wrapper, names as its output embeddings."""
    if isinstance(model, Mapping):
        return set()
    found: set[Tensor] = set()
    shards: Sequence[FlatShard] = ()
    if isinstance(model, FlatModel):
        shards, model = model.shards, model.module
    for module in model.modules():
        get = getattr(module, "get_output_embeddings", None)
        try:
            head = get() if callable(get) else None
        except (AttributeError, NotImplementedError):
            continue
        weight = getattr(head, "weight", None)
        found |= {weight} if isinstance(weight, Tensor) else set()
        found |= {shard.whole for shard in shards if shard.module is head}
    return found


def _plain(name: str) -> str:
    return WRAPPERS.sub("", name).removeprefix("module.")
