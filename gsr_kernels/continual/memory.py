"""Memory that a method's training will take, from the model's configuration alone."""

from __future__ import annotations

import copy
from collections.abc import MutableMapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from gsr_kernels.basis import storage_dtype
from gsr_kernels.cli.floors import cost, kinds_of
from gsr_kernels.cli.memory import LAPACK, Memory, decomposed, device
from gsr_kernels.continual.choose import Chosen
from gsr_kernels.continual.kinds import Causal, Classifier, Kind, Seq2Seq
from gsr_kernels.continual.methods import AdapterMethod
from gsr_kernels.continual.models import lora_config
from gsr_kernels.continual.ranks import world
from gsr_kernels.methods import LwFOwn, Method
from gsr_kernels.methods.base import of_any_task
from gsr_kernels.optim.targets import linear_matrices
from gsr_kernels.options import resolve_rank

# training and pictures on a CPU: their libraries take room to work in
LIBRARIES = 45 * 10**6
# of what a step saves, tensors of MAPPED bytes on apart, glibc's heap leaves the share HOLES in holes. Gradients and
# moments fill them, but for FEWEST, and they lie in what a decomposition left, where there was one
HOLES, FEWEST, MAPPED = 0.7, 0.2, 32 * 2**20

# the activations of a model, by rows, tokens and labels
_seen: MutableMapping[Any, dict[tuple[int, ...], list[int] | None]] = WeakKeyDictionary()


def needed(model: Any, kind: Kind, chosen: Chosen, longest: tuple[int, int]) -> Memory:
    """Return what training takes on this machine's device, of rows of at most so many tokens, and labels.

    ``model`` is on the meta device. Of several processes it is what each of them takes, by DDP.
    """
    settings: Any = chosen.settings_of_run
    size, on_cpu = getattr(torch, settings.dtype).itemsize, device() == "cpu"
    weights = size * sum(parameter.numel() for parameter in model.parameters())
    # the bases' own keys are of the model without adapters
    kinds = kinds_of(model)
    shapes = {target.name: target.parameter.shape[-2:] for target in linear_matrices(model)}
    bases = decomposition = copied = more = 0
    made = [of_any_task(one) for one in chosen.make()]
    if isinstance(chosen.method, AdapterMethod):
        from peft import get_peft_model

        from gsr_kernels.adapters.factors import find_factors

        model = get_peft_model(copy.deepcopy(model), lora_config(settings))
        # to answer, adapters are put into a copy
        copied = 0 if chosen.method.balanced else weights
        size = 4
        if chosen.method.balanced:
            sides = [one.layer.get_base_layer().weight.shape for one in find_factors(model)]
            # the mean gradient and a batch's, which are gone when the task ends, and all inputs at most are protected
            more = size * sum(2 * d1 * d2 + max(d1, d2) ** 2 for d1, d2 in sides)
            decomposition = decomposed(sides)
    elif any(isinstance(one, Method) and one.uses_basis for one in made):
        # one that decomposes by itself keeps them in full precision
        precision: Any = settings.precision if "precision" in chosen.method.fields else "fp32"
        element = storage_dtype(precision, torch.float32, torch.device(device())).itemsize
        ranks = resolve_rank(settings.rank, shapes)
        # the ranks that a share of each weight's comes to are of its shape
        by_shape = {tuple(shape): ranks[name] for name, shape in shapes.items()}
        bases = sum(cost([one], by_shape[one.d1, one.d2], "keep", element, 4).bases for one in kinds)
        decomposition = decomposed([(one.d1, one.d2) for one in kinds])
        # the weights as the task began
        if any("start" in one.lasting for one in made if isinstance(one, Method)):
            more = size * sum(target.parameter.numel() for target in linear_matrices(model))
    # embeddings that are the head too have a gradient of each use
    copies = 2 if kind.wants == "completion" and getattr(model.config, "tie_word_embeddings", False) else 1
    counts = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    trained = sum(counts)
    # importance and values of the weights; the model before the task
    strategies = getattr(chosen.method, "strategies", ())
    sizes = {"Consolidated": 2 * 4 * trained, "Distilled": weights, "Rehearsed": weights}
    kept = sum(sizes[name] for name in strategies)
    rows = settings.micro_batch or settings.batch // world()
    # the methods that train all of a model ask for the same
    shape, known = (rows, *longest), _seen.setdefault(model, {})
    if shape not in known:
        known[shape] = _activations(model, kind, *shape)
    saved = known[shape]
    for own in made:
        # its own rows are a part of the same loss
        if isinstance(own, LwFOwn) and saved is not None:
            saved = [*saved, *(_activations(model, kind, own.own_rows, own.own_tokens, own.own_tokens) or [])]
    small = sum(each for each in saved or () if each < MAPPED)
    holes = max(int(FEWEST * small), int(HOLES * small) - 3 * size * trained)
    return Memory(
        weights,
        size * trained,
        2 * size * trained,
        bases,
        None if saved is None else sum(saved),
        kept + more,
        sizes["Consolidated"] if "Consolidated" in strategies else 0,
        copied,
        # spectra, which every run draws, are LAPACK's too
        decomposition + (LIBRARIES + (0 if decomposition else LAPACK)) * on_cpu,
        size * max(counts) * copies + max(0, holes - decomposition) * on_cpu,
    )


def _activations(model: Any, kind: Kind, rows: int, length: int, answer: int) -> list[int] | None:
    """Return the bytes of each tensor that a step leaves to the backward pass, and of its first gradient, the logits'.

    None where the model cannot run without values.
    """
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage
        return tensor

    tokens = labels = torch.zeros(rows, length, dtype=torch.int64, device="meta")
    more = {}
    if isinstance(kind, Seq2Seq):
        more["decoder_input_ids"] = labels = torch.zeros(rows, answer, dtype=torch.int64, device="meta")
    padding = model.config.pad_token_id
    if isinstance(kind, Causal):
        # some look for padding in the values, to warn of it
        model.config.pad_token_id = None
    try:
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            outputs = model.train()(input_ids=tokens, **more)
            # a classifier's logits are few
            if not isinstance(kind, Classifier):
                kind.loss(model)(outputs, labels, 1)
    except (RuntimeError, TypeError):
        return None
    finally:
        model.config.pad_token_id = padding
    return [*(storage.nbytes() for storage in saved.values()), outputs.logits.nbytes]
