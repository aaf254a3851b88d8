"""The matrices under a method, and the bases that they are given."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from gsr_kernels.bases_file import load_bases
from gsr_kernels.basis import SpectralBasis, fingerprint, split_heads
from gsr_kernels.distributed.schemes import Scheme
from gsr_kernels.distributed.shard import fingerprint_of_parts
from gsr_kernels.linalg.cost import progress, svd_cost
from gsr_kernels.methods import Method
from gsr_kernels.methods.base import Heads, State
from gsr_kernels.optim.metrics import Measures
from gsr_kernels.optim.offload import in_host_memory
from gsr_kernels.side_by_side import Piece, decomposed, of_several


@dataclass(eq=False)
class Weight:
    """One matrix under a method; ``place`` finds it in the optimizer's groups, since wrappers swap parameters."""

    name: str
    place: tuple[int, int]
    method: Method
    rank: int | None
    heads: Heads
    # how it lies on the ranks
    scheme: Scheme
    # whether the basis stays in host memory
    offloaded: bool
    # whether a sketch may find it
    randomized: bool = False
    # the rank that was asked for where the weight has less
    clamped_from: int | None = None
    basis: SpectralBasis = field(init=False)
    state: State = field(init=False)
    # on the weight's device until they are asked for
    skipped: Tensor = field(init=False)
    # which of its matrices had a finite gradient in the last step that rewrote it
    finite: Tensor = field(init=False)
    measures: Measures = field(default_factory=dict)
    steps: int = 0

    @property
    def whole(self) -> bool:
        """Whether this rank has whole matrices, on which any method acts alone."""
        return not self.scheme.layout.matrices_cut

    def keep(self, basis: SpectralBasis) -> None:
        """Takes a basis that lies on the weight's device."""
        self.basis = in_host_memory(basis) if self.offloaded else basis


def decompose(weights: Sequence[Weight], parameters: Sequence[Tensor]) -> list[SpectralBasis]:
    """A new basis of every parameter, with the fingerprint of the weight that it came from.

    The most costly first, when the least is held beside its workspace, under a progress bar weighted by cost; on a GPU
    several at once (``side_by_side``). Weights that several ranks hold are dealt out among them.
    """
    alone = [place for place, weight in enumerate(weights) if weight.scheme.layout.mesh is None]
    shared = [place for place in range(len(weights)) if place not in alone]
    bases: dict[int, SpectralBasis] = {}
    if shared:
        from gsr_kernels.distributed.decompose import decompose_shared

        dealt = decompose_shared([weights[place] for place in shared], [parameters[place] for place in shared])
        bases.update(zip(shared, dealt))
    pieces = [_piece(weights[place], parameters[place]) for place in alone]

    def of(places: list[int]) -> list[SpectralBasis]:
        one, *others = (alone[place] for place in places)
        weight = weights[one]
        if not others:
            return [decompose_one(weight, parameters[one])]
        alike = [parameters[place] for place in (one, *others)]
        return of_several(alike, lambda W: _decomposed(weight, W))

    first = not (dist.is_available() and dist.is_initialized() and dist.get_rank())
    costs = [svd_cost(piece.shape) for piece in pieces]
    bar = progress("singular bases", sum(costs), shown=bool(alone) and first)
    with bar, closing(decomposed(pieces, of)) as found:
        for place, basis in found:
            bases[alone[place]] = basis
            bar.update(costs[place])
    return [bases[place] for place in range(len(weights))]


def decompose_one(weight: Weight, W: Tensor) -> SpectralBasis:
    """The basis of a whole weight; ValueError, by its name, where it has none."""
    try:
        basis = _decomposed(weight, W.detach())
    except ValueError as error:
        raise ValueError(f"{weight.name}: {error}") from error
    if basis.fingerprint is None or weight.method.basis_kind:
        basis = replace(basis, fingerprint=_of_kind(weight, fingerprint(W)))
    return basis


def _decomposed(weight: Weight, W: Tensor) -> SpectralBasis:
    if weight.randomized:
        return SpectralBasis.of(W, weight.rank, weight.heads, randomized=True)
    return weight.method.decompose(weight.name, W, weight.rank, weight.heads)


def _piece(weight: Weight, W: Tensor) -> Piece:
    shape = split_heads(W, weight.heads)[0].shape
    # a basis that the weight and the rank alone decide; what a method does instead is no other thread's
    plain = weight.randomized or type(weight.method).decompose is Method.decompose
    wide = torch.promote_types(W.dtype, torch.float32)
    sketch = weight.rank if weight.randomized else None
    return Piece(shape, W.device, wide, sketch, (shape, W.dtype, weight.rank) if plain and len(shape) == 2 else None)


def prepare(weights: Sequence[Weight], parameters: Sequence[Tensor], bases: Sequence[SpectralBasis]) -> list[State]:
    """What the methods keep for every parameter."""
    with torch.no_grad():
        return [
            weight.method.prepare(weight.name, basis.split(parameter), basis)
            for weight, parameter, basis in zip(weights, parameters, bases)
        ]


def check_folder(path: str | os.PathLike[str]) -> None:
    """Raises FileNotFoundError where the folder that bases are to lie in is not there."""
    if not Path(path).parent.is_dir():
        raise FileNotFoundError(f"bases: no directory {Path(path).parent} to keep {Path(path).name} in")


def before(path: Path) -> Path:
    """Where the bases that are being replaced lie for a moment."""
    return path.with_name(f".{path.name}.old")


def is_stored(path: str | os.PathLike[str]) -> bool:
    """Whether there are bases, though a write was broken off when the new ones were to take the place of the old."""
    return Path(path).exists() or before(Path(path)).exists()


def stored_bases(path: str | os.PathLike[str], weights: Sequence[Weight]) -> dict[str, SpectralBasis]:
    """What a file, or a directory of parts, holds of the bases of these weights, by name; raises as ``load_bases``."""
    path = Path(path)
    if not path.exists() and before(path).exists():
        path = before(path)
    if not path.is_dir() and all(weight.scheme.layout.mesh is None for weight in weights):
        return load_bases(path, [weight.name for weight in weights])
    from gsr_kernels.distributed.store import read_shared

    return read_shared(path, weights)


def stored_basis(weight: Weight, parameter: Tensor, stored: SpectralBasis | None) -> SpectralBasis | None:
    """A basis from a file, on the weight's device, if it has the weight's shape, split and rank; else None.

    One that a sketch found serves only where a sketch is asked for.
    """
    if stored is None or stored.randomized > weight.randomized:
        return None
    matrices, head_dim = split_heads(parameter, weight.heads)
    shape = matrices.shape if weight.whole else weight.scheme.layout.shape
    if stored.shape != shape or stored.head_dim != head_dim:
        return None
    # a method with bases of its own chose their rank
    fits = weight.method.basis_kind or stored.rank == (weight.rank or min(shape[-2:]))
    return stored.to(parameter.device) if fits else None


def origin(weight: Weight, parameter: Tensor) -> str:
    """The fingerprint of a weight as its method decomposes it: what a stored basis must have to serve."""
    return _of_kind(weight, fingerprint_of_parts(parameter, weight.scheme.layout))


def _of_kind(weight: Weight, of_weight: str) -> str:
    kind = weight.method.basis_kind
    return of_weight + (f":{kind}" if kind else "")
