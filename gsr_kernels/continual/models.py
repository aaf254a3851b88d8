"""A model and its tokenizer, by transformers."""

from __future__ import annotations

import contextlib
import copy
import logging
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from gsr_kernels.continual.choose import Chosen
from gsr_kernels.continual.kinds import KINDS, Classifier, Kind, kind_of
from gsr_kernels.continual.kinds.classifier import output_of
from gsr_kernels.continual.methods import AdapterMethod
from gsr_kernels.continual.metrics import Spectra
from gsr_kernels.continual.ranks import first, on_rank0
from gsr_kernels.continual.settings import RunSettings
from gsr_kernels.messages import some
from gsr_kernels.methods import Method
from gsr_kernels.methods.base import of_any_task
from gsr_kernels.optim.targets import linear_matrices
from gsr_kernels.options import resolve_rank

if TYPE_CHECKING:
    from peft import LoraConfig

# what libraries say of what is meant here
HIDDEN = (
    # ``load`` says it in a line
    "LOAD REPORT",
    # such rows are truncated, and counted
    "sequence length is longer than the specified maximum sequence length",
    # of gradient checkpointing
    "`use_cache=True` is incompatible with",
    # PEFT's affair
    "`is_gradient_checkpointing` is deprecated",
)
WAY_OUT = "see that --model's folder holds the tokenizer of its weights (tokenizer.json)"
# weights whose spectra are kept, of the middle layer
SPECTRA = 8


def find_model(name: str) -> tuple[Any, Any]:
    """Return a model's configuration and tokenizer; ValueError or FileNotFoundError where there is none."""
    import transformers

    config = find_config(name)
    try:
        return config, _found(transformers.AutoTokenizer, name)
    except ValueError as error:
        raise ValueError(f"{' '.join(str(error).split()).rstrip('.')}; {WAY_OUT}") from error


def find_config(name: str) -> Any:
    """Return a model's configuration; ValueError or FileNotFoundError where there is none."""
    import transformers

    return _found(transformers.AutoConfig, name)


def open_kind(settings: RunSettings, config: Any, tokenizer: Any) -> Kind:
    """Return the model's kind with its tokenizer; ValueError where the settings ask for what either does not have."""
    kind = kind_of(config, settings.kind)
    if kind is KINDS["seq2seq"] and getattr(config, "output_router_logits", False):
        raise ValueError(
            f"--model {settings.model}: the losses of an encoder–decoder's routers are not trained on: set "
            "output_router_logits to false in its config.json"
        )
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and settings.max_tokens > positions:
        raise ValueError(
            f"max_tokens must be at most {positions}, the positions that the model has, got {settings.max_tokens}"
        )
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError(f"--model {settings.model}: the tokenizer has no padding token and no end of text")
        tokenizer.pad_token = tokenizer.eos_token
    # padding goes behind the row in training
    tokenizer.padding_side = "right"
    common = {
        "tokenizer": tokenizer,
        "max_tokens": settings.max_tokens,
        "batch": settings.eval_batch,
        "positions": positions,
        "vocabulary": getattr(config.get_text_config(), "vocab_size", None),
    }
    for token in ("pad_token", "eos_token"):
        index = getattr(tokenizer, f"{token}_id")
        if None not in (index, common["vocabulary"]) and index >= common["vocabulary"]:
            raise ValueError(
                f"--model {settings.model}: the tokenizer's {token} is {index}, and the model knows "
                f"{common['vocabulary']} tokens: resize its embeddings, or give the tokenizer of its weights"
            )
    if kind is Classifier:
        if settings.chat:
            raise ValueError("--chat is for models that write; a classifier reads the prompt as it is")
        return Classifier(**common)
    if kind is KINDS["causal"] and tokenizer.eos_token is None:
        raise ValueError(f"--model {settings.model}: the tokenizer has no token that ends a text")
    if settings.chat and not tokenizer.chat_template:
        raise ValueError(f"--chat: the tokenizer of {settings.model} has no chat template")
    return kind(**common, chat=settings.chat)  # type: ignore[call-arg]


def check_weights(config: Any, kind: Kind, run: Iterable[Chosen]) -> Any:
    """Return the model on the meta device; ValueError for a rank or for adapters that it cannot have."""
    import transformers

    with torch.device("meta"):
        model = getattr(transformers, kind.auto).from_config(config)
    if isinstance(kind, Classifier):
        output_of(model)
    shapes = {target.name: target.parameter.shape[-2:] for target in linear_matrices(model)}
    W = torch.diag(torch.arange(4, 0, -1, dtype=torch.float32))
    for chosen in run:
        rank = chosen.settings_of_run.rank
        resolve_rank(rank, shapes)
        if isinstance(chosen.method, AdapterMethod):
            _check_adapters(copy.deepcopy(model), config.model_type, chosen)
            continue
        methods = [method for method in map(of_any_task, chosen.make()) if isinstance(method, Method)]
        for method in methods:
            basis = method.decompose("a weight", W, None if rank is None else 2, None)
            method.prepare("a weight", W, basis)
    return model


def lora_config(settings: RunSettings) -> LoraConfig:
    """Return PEFT's settings of an adapter; its scaling is 1."""
    from peft import LoraConfig

    rank = settings.adapter_rank
    return LoraConfig(
        r=rank, lora_alpha=rank, lora_dropout=settings.adapter_dropout, target_modules=settings.adapter_targets
    )


def _check_adapters(model: Any, architecture: str, chosen: Chosen) -> None:
    from peft import get_peft_model

    from gsr_kernels.adapters.factors import find_factors

    settings, name = chosen.settings_of_run, chosen.name
    try:
        factors = find_factors(get_peft_model(model, lora_config(settings)), "default")
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"method {name}: PEFT knows no query and value of {architecture} that can be adapted: {error}"
        ) from error
    for one in factors:
        if "eblora" in chosen.parts and settings.adapter_rank > min(one.weight.shape):
            raise ValueError(
                f"adapter_rank must be at most {min(one.weight.shape)} for eblora, whose directions {one.name} holds, "
                f"got {settings.adapter_rank}"
            )


def load(kind: Kind, path: str | Path, dtype: str, seed: int, whole: bool = False) -> Any:
    """Load the model on the device that there is, in evaluation; what its checkpoint lacks is drawn from the seed.

    Where that is more than a classifier's head, which ``set_labels`` draws, a warning names it; of a model that a run
    has saved, ``whole``, it is a ValueError.
    """
    import transformers

    classifies, wanted = isinstance(kind, Classifier), {"dtype": getattr(torch, dtype)}
    torch.manual_seed(seed)
    auto = getattr(transformers, kind.auto)
    model, info = _found(auto, str(path), output_loading_info=True, ignore_mismatched_sizes=True, **wanted)
    for what, found, wrong in (
        ("lacks", info["missing_keys"], whole),
        ("holds, and the model does not:", info["unexpected_keys"], whole),
        ("holds, in other shapes than the model:", {name for name, *_ in info["mismatched_keys"]}, True),
    ):
        # a new head is what a classifier begins with
        names = [name for name in sorted(found) if whole or not classifies or name.startswith(model.base_model_prefix)]
        told = f"{path} {what} {some(names)}"
        if names and wrong:
            raise ValueError(told + ": it is not what the run saved, or for other tasks" * whole)
        if names:
            warnings.warn(f"--model {told}", stacklevel=1)
    if isinstance(kind, Classifier):
        labels, output = getattr(model.config, "task_labels", {}), f"{output_of(model)}.weight"
        if whole and not labels.items() <= kind.task_labels.items():
            raise ValueError(f"{path} holds the labels {labels}: it is not what the run saved, or for other tasks")
        if not whole:
            model.config.task_labels = {}
            if output not in info["missing_keys"]:
                warnings.warn(f"--model {path}: its {output} gives way to a head for the tasks", stacklevel=1)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = kind.tokenizer.pad_token_id
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def save(kind: Kind, model: Any, folder: Path, weights: Any = None) -> None:
    """Have the first rank write a model, or ``weights`` in place of its own, with its tokenizer; all ranks call it."""

    def write() -> None:
        model.save_pretrained(folder, state_dict=weights)
        kind.tokenizer.save_pretrained(folder)

    on_rank0(write)


@torch.no_grad()
def spectra(model: Any) -> Spectra:
    """Return the singular values of the linear weights of the middle layer, of ``SPECTRA`` of them at most."""
    found = [target for target in linear_matrices(model) if target.parameter.ndim == 2]
    layers = [re.search(r"\.(\d+)\.", target.name) for target in found]
    numbers = sorted({int(layer[1]) for layer in layers if layer})
    middle = numbers[len(numbers) // 2] if numbers else None
    chosen = [one for one, layer in zip(found, layers) if (int(layer[1]) if layer else None) == middle][:SPECTRA]
    return {one.name: torch.linalg.svdvals(one.parameter.float()).tolist() for one in chosen}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide transformers' own bars, and the messages of ``HIDDEN``; the rest is written above the run's bar."""
    from transformers.utils import logging as library

    said: set[str] = set()
    show = warnings.showwarning

    def is_told(text: str) -> bool:
        # every rank says the same
        return first() and not any(part in text for part in HIDDEN)

    def warn(message: Warning | str, *details: Any, **more: Any) -> None:
        if is_told(str(message)) and str(message) not in said:
            said.add(str(message))
            with tqdm.external_write_mode(sys.stderr):
                show(message, *details, **more)

    def told(record: logging.LogRecord) -> bool:
        return is_told(record.getMessage())

    logger, bars = logging.getLogger("transformers"), library.is_progress_bar_enabled()
    library.disable_progress_bar()
    with logging_redirect_tqdm([logger]), warnings.catch_warnings():
        warnings.showwarning = warn
        for handler in logger.handlers:
            handler.addFilter(told)
        try:
            yield
        finally:
            for handler in logger.handlers:
                handler.removeFilter(told)
            if bars:
                library.enable_progress_bar()


def _found(auto: Any, name: str, **settings: Any) -> Any:
    try:
        return auto.from_pretrained(name, **settings)
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(
            f"--model {name} is no folder with a model, and no hub gave one of that name ({reason})"
        ) from error
    except (KeyError, ValueError, ImportError) as error:
        raise ValueError(f"--model {name} cannot be read: {error}") from error
