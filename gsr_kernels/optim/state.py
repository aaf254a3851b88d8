"""State of a method in a checkpoint: counters, settings and which bases it needs, never the bases."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gsr_kernels.basis import SpectralBasis
from gsr_kernels.distributed.agreement import all_ranks_agree
from gsr_kernels.io.bases_file import is_stored
from gsr_kernels.messages import some
from gsr_kernels.methods.base import State
from gsr_kernels.optim.bases import prepare, stored_bases
from gsr_kernels.optim.report import warn
from gsr_kernels.weight import Weight

FORMAT_VERSION = 1

# where an optimizer's own state_dict holds it
KEY = "gsr_kernels"


def weight_states(weights: Sequence[Weight]) -> dict[str, dict[str, Any]]:
    """Of each weight, by name: tensors, numbers and strings alone, which ``torch.load(weights_only=True)`` reads."""
    return {
        weight.name: {
            "method": repr(weight.method),
            "fingerprint": weight.basis.fingerprint,
            "rank": weight.basis.rank,
            "randomized": weight.basis.randomized,
            "precision": weight.basis.precision,
            "steps": weight.steps,
            # each rank counts its own experts
            "skipped": 0 if weight.scheme.layout.shards_batch else int(weight.skipped),
            "state": {key: weight.state[key] for key in weight.method.lasting},
        }
        for weight in weights
    }


def load_weight_states(
    weights: Sequence[Weight],
    saved: Mapping[str, Mapping[str, Any]],
    bases: str | os.PathLike[str] | None,
    wanted: str | None,
) -> bool:
    """Give the weights what ``weight_states`` saved; return whether bases were read from the file ``bases``.

    Raises ValueError, with nothing changed, where names differ or a basis is nowhere, naming the file ``wanted``.
    """
    names = {weight.name for weight in weights}
    if names != saved.keys():
        raise ValueError(
            f"the checkpoint holds other weights: it lacks {some(sorted(names - saved.keys()))} and has "
            f"{some(sorted(saved.keys() - names))} beside them; attach() with the targets that it was made with"
        )
    found = _find([weight for weight in weights if not _same(weight.basis, saved[weight.name])], saved, bases, wanted)
    states = [_state(weight, saved[weight.name]["state"], found.get(weight.name)) for weight in weights]
    other = [weight.name for weight in weights if repr(weight.method) != saved[weight.name]["method"]]
    if other:
        warn("settings", other, method=saved[other[0]]["method"])
    for weight, state in zip(weights, states):
        entry = saved[weight.name]
        if weight.name in found:
            weight.keep(found[weight.name].to(weight.held.device))
        weight.state = state
        if not weight.method.own_decompose:
            weight.precision = weight.basis.precision
        weight.steps = entry["steps"]
        if not weight.scheme.layout.shards_batch:
            weight.skipped = torch.full_like(weight.skipped, entry["skipped"])
    return bool(found)


def _find(
    differing: Sequence[Weight],
    saved: Mapping[str, Mapping[str, Any]],
    path: str | os.PathLike[str] | None,
    wanted: str | None,
) -> dict[str, SpectralBasis]:
    names = [weight.name for weight in differing]
    layouts = [weight.scheme.layout for weight in differing]
    there = path is not None and all_ranks_agree(is_stored(path), layouts)
    stored = stored_bases(path, differing) if names and path is not None and there else {}
    found = {name: basis for name, basis in stored.items() if basis is not None and _same(basis, saved[name])}
    missing = [name for name in names if name not in found]
    if not all_ranks_agree(not missing, layouts):
        missing = missing or names
        source = f"in {wanted}" if wanted else "in no file: call handle.save_bases(path) before saving a checkpoint"
        here = f"; {os.fspath(path)} holds none, or others" if path is not None else ""
        raise ValueError(
            f"bases: the checkpoint needs those of {len(missing)} weights as they were when its task began "
            f"({some(missing)}). They were kept {source}{here}. Give attach() or load_state_dict() that file as bases="
        )
    return found


def _state(weight: Weight, saved: Mapping[str, Tensor], basis: SpectralBasis | None) -> State:
    device = weight.held.device
    fresh = weight.state if basis is None else prepare([weight], [basis.to(device)])[0]
    # with another method the saved state is of no use
    return {key: saved[key].to(device).clone() if key in saved else value for key, value in fresh.items()}


def _same(basis: SpectralBasis, entry: Mapping[str, Any]) -> bool:
    same = basis.fingerprint == entry["fingerprint"] and basis.rank == entry["rank"]
    same = same and basis.precision == entry.get("precision", basis.precision)
    return same and basis.randomized == entry.get("randomized", False)
