"""The decompositions of a model: one after another, several at once, or equal ones as a batch, whichever is faster."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from gsr_kernels.basis import SpectralBasis, fingerprint
from gsr_kernels.linalg.cost import svd_bytes, svd_cost
from gsr_kernels.linalg.drivers import fastest, power_of_two

# so many at once, or as a batch
ARRANGEMENTS = ("1", "2", "4", "8", "batch")

# matrices of a probe, and of a batch at most
TIMED = 8

# what a batch may take: a constant, since the bits of its results depend on what is in it
BATCH_BYTES = 1 << 31

# of the memory that is free, what several at once may take
SHARE = 0.5


@dataclass(frozen=True)
class Piece:
    """One weight as it is decomposed, ``shape [.., d1, d2]``.

    ``sketch``: the rank, where it is found by a sketch. Pieces with the same ``alike``, not None, may be a batch.
    """

    shape: tuple[int, ...]
    device: torch.device
    sketch: int | None = None
    alike: Hashable = None

    @property
    def kind(self) -> tuple[torch.device, int, int | None]:
        """What decides how it is best arranged with others."""
        return self.device, power_of_two(min(self.shape[-2:])), self.sketch and power_of_two(self.sketch)


# the bases of the pieces at these places, which are alike if they are several; ValueError where one has none
Decompose = Callable[[list[int]], list[SpectralBasis]]


def decomposed(
    pieces: Sequence[Piece], of: Decompose, arrangement: str | None = None
) -> Iterator[tuple[int, SpectralBasis]]:
    """Each piece's place and basis, as they come; of those of a kind the most costly first.

    On a GPU what is fastest for a kind is timed once on the machine (see ``drivers``); elsewhere, and for a few pieces,
    one comes after another. Several at once are decomposed by threads with a stream each, since an eigenproblem keeps
    its caller waiting and leaves most of a GPU idle. What they hold stays below a share of the free memory; what does
    not fit all the same is done once more, alone. A basis has the same bits however many there are at once.

    An exception of ``of`` is raised when those that have begun are done; none begins after it.
    """
    kinds: dict[tuple[torch.device, int, int | None], list[int]] = {}
    for place in sorted(range(len(pieces)), key=lambda place: -svd_cost(pieces[place].shape)):
        kinds.setdefault(pieces[place].kind, []).append(place)
    for kind, places in kinds.items():
        chosen = arrangement or arranged(*kind, len(places))
        if chosen == "batch":
            yield from _one_by_one(_batches(pieces, places), of)
        elif chosen == "1":
            yield from _one_by_one([[place] for place in places], of)
        else:
            # what one meets first, a driver to be timed or a library to be loaded, it meets undisturbed
            yield from _one_by_one([places[:1]], of)
            yield from _at_once(pieces, places[1:], of, int(chosen), _room(kind[0]))


def of_several(weights: Sequence[Tensor], of: Callable[[Tensor], SpectralBasis]) -> list[SpectralBasis]:
    """The bases of weights of one shape and dtype, found by ``of``, as one batch where they are several."""
    if len(weights) == 1:
        return [of(weights[0])]
    found = of(torch.stack([weight.detach() for weight in weights]))
    # copies: a part would keep the whole batch in memory
    parts = zip(*(factor.unbind() for factor in (found.U, found.S, found.Vh)))
    return [
        replace(found, U=U.clone(), S=S.clone(), Vh=Vh.clone(), fingerprint=fingerprint(weight))
        for weight, (U, S, Vh) in zip(weights, parts)
    ]


def bases_of(
    weights: Sequence[Tensor], sketch: int | None = None, arrangement: str | None = None
) -> list[SpectralBasis]:
    """The bases of matrices, whole or, found by a sketch, of that rank where they have as much."""
    pieces = [Piece(tuple(W.shape), W.device, sketch, (W.shape, W.dtype)) for W in weights]

    def of(places: list[int]) -> list[SpectralBasis]:
        rank = sketch and min(sketch, *pieces[places[0]].shape)
        return of_several(
            [weights[place] for place in places], lambda W: SpectralBasis.of(W, rank, randomized=sketch is not None)
        )

    found = dict(decomposed(pieces, of, arrangement))
    return [found[place] for place in range(len(weights))]


def arranged(device: torch.device, size: int, sketch: int | None, count: int) -> str:
    """The fastest of ``ARRANGEMENTS`` for ``count`` pieces of a kind."""
    if device.type != "cuda" or count < TIMED:
        return "1"
    key = f"{size} by a sketch of {sketch}, side by side" if sketch else f"{size}, side by side"
    return fastest(device, key, ARRANGEMENTS, partial(_seconds, device, size, sketch))


def _seconds(device: torch.device, size: int, sketch: int | None, arrangement: str) -> float:
    """What random square matrices take."""
    generator = torch.Generator(device).manual_seed(0)
    weights = torch.randn(TIMED, size, size, device=device, generator=generator).unbind()
    # the first run loads libraries and allocates
    for _ in range(2):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        bases_of(weights, sketch, arrangement)
        torch.cuda.synchronize(device)
        taken = time.perf_counter() - start
    return taken


def _batches(pieces: Sequence[Piece], places: Sequence[int]) -> list[list[int]]:
    """Places that are alike, in their order, as many together as were timed and as are small enough."""
    batches: list[list[int]] = []
    last: dict[Hashable, list[int]] = {}
    for place in places:
        piece = pieces[place]
        batch = last.get(piece.alike) if piece.alike is not None else None
        if batch is None or len(batch) == TIMED or (len(batch) + 1) * svd_bytes(piece.shape) > BATCH_BYTES:
            batch = last[piece.alike] = []
            batches.append(batch)
        batch.append(place)
    return batches


def _one_by_one(jobs: Sequence[list[int]], of: Decompose) -> Iterator[tuple[int, SpectralBasis]]:
    for places in jobs:
        yield from zip(places, _together(places, of))


def _together(places: list[int], of: Decompose) -> list[SpectralBasis]:
    try:
        return of(places)
    except (torch.OutOfMemoryError, ValueError):
        if len(places) == 1:
            raise
    # not all of them fit at once, or one has no basis, which it then says by its name
    return [of([place])[0] for place in places]


def _at_once(
    pieces: Sequence[Piece], places: Sequence[int], of: Decompose, workers: int, room: float
) -> Iterator[tuple[int, SpectralBasis]]:
    """By so many threads, which hold no more than ``room`` bytes unless one alone does."""
    if not places:
        return
    device = pieces[places[0]].device
    caller = torch.cuda.current_stream(device) if device.type == "cuda" else None
    waiting, again = list(reversed(places)), []
    running: dict[Future[SpectralBasis], int] = {}
    # leaving it waits for those that have begun
    with ThreadPoolExecutor(workers, "decomposition", _on_a_stream, (caller,)) as pool:
        while waiting or running:
            while waiting and len(running) < workers:
                held = sum(svd_bytes(pieces[place].shape) for place in (*running.values(), waiting[-1]))
                if running and held > room:
                    break
                place = waiting.pop()
                running[pool.submit(_in_a_thread, of, place, caller)] = place
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                place = running.pop(future)
                try:
                    basis = future.result()
                except torch.OutOfMemoryError:
                    again.append(place)
                else:
                    yield place, basis
    yield from _one_by_one([[place] for place in again], of)


def _on_a_stream(caller: torch.cuda.Stream | None) -> None:
    if caller is not None:
        stream = torch.cuda.Stream(caller.device)
        # the weights are as the caller left them
        stream.wait_stream(caller)
        torch.cuda.set_stream(stream)


@torch.no_grad()
def _in_a_thread(of: Decompose, place: int, caller: torch.cuda.Stream | None) -> SpectralBasis:
    (basis,) = of([place])
    if caller is not None:
        torch.cuda.current_stream(caller.device).synchronize()
        # the caller goes on to use what was allocated for this stream
        for factor in (basis.U, basis.S, basis.Vh):
            factor.record_stream(caller)
    return basis


def _room(device: torch.device) -> float:
    """Bytes that decompositions may take beside what is there: of a host's memory nothing is known."""
    if device.type != "cuda":
        return math.inf
    free = torch.cuda.mem_get_info(device)[0]
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return SHARE * (free + unused)
