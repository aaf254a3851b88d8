"""The bases that weights are given: decomposed now, or read from a file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from gsr_kernels.backends.torch.products import without_autocast
from gsr_kernels.basis import SpectralBasis, split_heads
from gsr_kernels.io.bases_file import before, load_bases
from gsr_kernels.linalg.side_by_side import Job, decompose_all, progress, svd_cost
from gsr_kernels.methods.base import State
from gsr_kernels.methods.contract import check_state
from gsr_kernels.weight import Weight, decompose_one


@without_autocast()
def decompose(weights: Sequence[Weight]) -> list[SpectralBasis]:
    """Return a new basis of every weight, under a progress bar weighted by cost; ranks share what they all hold."""
    alone = [place for place, weight in enumerate(weights) if weight.scheme.layout.mesh is None]
    shared = [place for place in range(len(weights)) if place not in alone]
    bases: dict[int, SpectralBasis] = {}
    if shared:
        from gsr_kernels.distributed.decompose import decompose_shared

        bases.update(zip(shared, decompose_shared([weights[place] for place in shared])))
    jobs = [_job(weights[place]) for place in alone]

    first = not (dist.is_available() and dist.is_initialized() and dist.get_rank())
    costs = [svd_cost(job.shape) for job in jobs]
    bar = progress("singular bases", sum(costs), shown=bool(alone) and first)
    with bar, closing(decompose_all(jobs)) as found:
        for place, basis in found:
            bases[alone[place]] = basis
            bar.update(costs[place])
    return [bases[place] for place in range(len(weights))]


def _job(weight: Weight) -> Job:
    W = weight.held
    shape = split_heads(W, weight.heads)[0].shape
    # a basis that the weight and the rank alone decide; what a method does instead is no other thread's
    plain = weight.randomized or not weight.method.own_decompose
    wide = torch.promote_types(W.dtype, torch.float32)
    sketch = weight.rank if weight.randomized else None
    key = (shape, W.dtype, weight.rank) if plain and len(shape) == 2 else None
    return Job(shape, W.device, lambda: W, partial(decompose_one, weight), wide, sketch, key)


def prepare(weights: Sequence[Weight], bases: Sequence[SpectralBasis]) -> list[State]:
    """Return what the methods keep for every weight."""
    with torch.no_grad(), without_autocast():
        states = [weight.method.prepare(weight.name, B.split(weight.held), B) for weight, B in zip(weights, bases)]
    for weight, state in zip(weights, states):
        check_state(weight.method, state)
    return states


def stored_bases(path: str | os.PathLike[str], weights: Sequence[Weight]) -> Mapping[str, SpectralBasis | None]:
    """Return the stored bases of these weights by name, None for one of another shape. Raises as ``load_bases``."""
    path = Path(path)
    if not path.exists() and before(path).exists():
        path = before(path)
    if not path.is_dir() and all(weight.scheme.layout.mesh is None for weight in weights):
        return load_bases(path, [weight.name for weight in weights])
    from gsr_kernels.distributed.store import read_shared

    return read_shared(path, weights)


def stored_basis(weight: Weight, stored: SpectralBasis | None) -> SpectralBasis | None:
    """Return a basis from a file, on the weight's device, if it is as asked for: shape, split, rank, precision."""
    if stored is None or stored.randomized > weight.randomized:
        return None
    W = weight.held
    matrices, head_dim = split_heads(W, weight.heads)
    shape = matrices.shape if weight.whole else weight.scheme.layout.shape
    if stored.shape != shape or stored.head_dim != head_dim:
        return None
    # a method with bases of its own chose their rank
    fits = weight.method.basis_kind or stored.rank == (weight.rank or min(shape[-2:]))
    fits = fits and weight.precision in (None, stored.precision)
    return stored.to(W.device) if fits else None
