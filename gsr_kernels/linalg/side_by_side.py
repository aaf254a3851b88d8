"""The decompositions of a model: one after another, several at once, or equal ones as a batch, whichever is faster."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from gsr_kernels.basis import SpectralBasis, fingerprint
from gsr_kernels.linalg.drivers import candidates, chosen, fastest, power_of_two, seconds

# so many at once, or as a batch
ARRANGEMENTS = ("1", "4", "batch")

# matrices of a probe, and of a batch at most
TIMED = 4

# times what a probe decomposes, from which on it is worth its while
WORTH = 3

# what a batch may take: a constant, since the bits of its results depend on what is in it
BATCH_BYTES = 1 << 31

# of the memory that is free, what several at once may take
SHARE = 0.5


def svd_cost(shape: Sequence[int]) -> int:
    """Return the multiplications of one pass ``[.., m, n] x [.., n, n]``: an exact SVD takes some tens of them."""
    return math.prod(shape) * min(shape[-2:])


def svd_bytes(shape: Sequence[int], itemsize: int = 4) -> int:
    """Return the bytes that an exact SVD of ``shape [.., m, n]`` holds at most.

    Counted in tensors of the polar driver: seven of W's, W and its copy in that precision among them, sixteen of the
    short side's.
    """
    *batch, m, n = shape
    return itemsize * math.prod(batch) * (7 * m * n + 16 * min(m, n) ** 2)


def progress(title: str, cost: int, shown: bool = True) -> tqdm[None]:
    """Return a bar over work that differs in cost: its remaining time is right though the jobs are unlike."""
    line = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    return tqdm(desc=title, total=cost, bar_format=line, leave=False, disable=None if shown else True)


class Kind(NamedTuple):
    """Matrices with one arrangement: one device, one decision about drivers (its key, the size timed), one rank."""

    device: torch.device
    key: str
    size: int
    dtype: torch.dtype
    sketch: int | None


@dataclass(frozen=True)
class Job:
    """One weight to decompose, ``shape [.., d1, d2]``, in ``dtype``.

    ``read`` returns it when its turn has come, ``decompose`` its basis, or raises ValueError. ``sketch``: the rank,
    where it is found by a sketch. ``batch_key``: of one matrix, decomposed as ``SpectralBasis.of`` does; those of equal
    keys may be a batch. None for all others, which are done one by one.
    """

    shape: tuple[int, ...]
    device: torch.device
    read: Callable[[], Tensor]
    decompose: Callable[[Tensor], SpectralBasis]
    dtype: torch.dtype = torch.float32
    sketch: int | None = None
    batch_key: Hashable = None

    @property
    def kind(self) -> Kind | None:
        """Return what decides how it is best arranged with others; None where nothing is to decide."""
        if self.batch_key is None:
            return None
        _, key, size = candidates(self.device, min(self.shape[-2:]), self.dtype)
        return Kind(self.device, key, size, self.dtype, self.sketch and power_of_two(self.sketch))

    @property
    def nbytes(self) -> int:
        """Return the bytes that it holds at most while it is decomposed."""
        return svd_bytes(self.shape, self.dtype.itemsize)


def decompose_all(
    jobs: Sequence[Job], arrangement: str | None = None
) -> Generator[tuple[int, SpectralBasis], None, None]:
    """Yield each job's index and basis, as they come; of those of a kind the most costly first.

    On a GPU what is fastest for a kind is timed once on the machine (see ``drivers``), where it has many jobs;
    elsewhere, and for a few, one comes after another. Several at once are decomposed by threads with a stream each,
    since an eigenproblem keeps its caller waiting and leaves most of a GPU idle. One begins beside others only where
    all hold less than a share of the memory that is free then; what does not fit all the same is done once more,
    alone. How many are at once does not change a bit of a basis. In a batch the bits depend on what else is in it:
    there is none where torch is to use deterministic algorithms alone.

    An exception of a job is raised when those that have begun are done; none begins after it. Who may leave
    early closes the generator, which waits for them as well.
    """
    kinds: dict[Kind | None, list[int]] = {}
    for index in sorted(range(len(jobs)), key=lambda index: -svd_cost(jobs[index].shape)):
        kinds.setdefault(jobs[index].kind, []).append(index)
    for kind, indices in kinds.items():
        how = "1" if kind is None else arrangement or arranged(kind, len(indices))
        one_by_one = [[index] for index in indices]
        if how.isdigit() and how != "1":
            # what one meets first, a driver to be timed or a library to be loaded, it meets undisturbed
            yield from _in_turn(jobs, one_by_one[:1])
            yield from _at_once(jobs, indices[1:], int(how))
        else:
            yield from _in_turn(jobs, _batches(jobs, indices) if how == "batch" else one_by_one)


def _batch(jobs: Sequence[Job]) -> list[SpectralBasis]:
    """Return the bases of several jobs of equal keys, decomposed as one batch."""
    weights = [job.read().detach() for job in jobs]
    found = jobs[0].decompose(torch.stack(weights))
    # copies: a part would keep the whole batch in memory
    parts = zip(*(factor.unbind() for factor in (found.U, found.S, found.Vh)))
    return [
        replace(found, U=U.clone(), S=S.clone(), Vh=Vh.clone(), fingerprint=fingerprint(weight))
        for weight, (U, S, Vh) in zip(weights, parts)
    ]


def bases_of(
    weights: Sequence[Tensor], sketch: int | None = None, arrangement: str | None = None
) -> list[SpectralBasis]:
    """Return the bases of matrices, whole or, found by a sketch, of that rank where they have as much."""

    def job(W: Tensor) -> Job:
        of = partial(SpectralBasis.of, rank=sketch and min(sketch, *W.shape), randomized=sketch is not None)
        wide = torch.promote_types(W.dtype, torch.float32)
        return Job(tuple(W.shape), W.device, lambda: W, of, wide, sketch, (W.shape, W.dtype))

    found = dict(decompose_all([job(W) for W in weights], arrangement))
    return [found[index] for index in range(len(weights))]


def arranged(kind: Kind, count: int) -> str:
    """Return the fastest of ``ARRANGEMENTS`` for ``count`` jobs of a kind, timed where they are many times a probe."""
    if kind.device.type != "cuda":
        return "1"
    deterministic = torch.are_deterministic_algorithms_enabled()
    names = tuple(name for name in ARRANGEMENTS if not (deterministic and name == "batch"))
    found = f"{kind.key} by a sketch of {kind.sketch}" if kind.sketch else kind.key
    key = f"{found} in {str(kind.dtype).removeprefix('torch.')}, side by side{', deterministic' * deterministic}"
    known = chosen(kind.device, key)
    if known in names:
        return known
    # a probe without room would time how jobs that did not fit are done again
    needed = TIMED * svd_bytes((kind.size, kind.size), kind.dtype.itemsize)
    if count < WORTH * 2 * TIMED * len(names) or needed > _room(kind.device):
        return "1"
    return fastest(kind.device, key, names, partial(_seconds, kind))


def _seconds(kind: Kind, arrangement: str) -> float:
    """Return the seconds that random square matrices take, infinite where that fails."""
    generator = torch.Generator(kind.device).manual_seed(0)
    try:
        weights = torch.randn(
            TIMED, kind.size, kind.size, dtype=kind.dtype, device=kind.device, generator=generator
        ).unbind()
        bases_of(weights, kind.sketch, arrangement)
        return seconds(lambda: bases_of(weights, kind.sketch, arrangement), kind.device)
    except (RuntimeError, ValueError):
        return math.inf


def _batches(jobs: Sequence[Job], indices: Sequence[int]) -> list[list[int]]:
    """Return indices of equal keys, in their order, as many together as were timed and as are small enough."""
    batches: list[list[int]] = []
    last: dict[Hashable, list[int]] = {}
    for index in indices:
        job = jobs[index]
        batch = last.get(job.batch_key)
        if batch is None or len(batch) == TIMED or (len(batch) + 1) * job.nbytes > BATCH_BYTES:
            batch = last[job.batch_key] = []
            batches.append(batch)
        batch.append(index)
    return batches


def _in_turn(jobs: Sequence[Job], batches: Sequence[list[int]]) -> Iterator[tuple[int, SpectralBasis]]:
    """Decompose batch after batch; one that does not fit, or a weight of which has no basis, one by one.

    A weight without a basis then says so by its name.
    """
    for indices in batches:
        if len(indices) > 1 and sum(jobs[index].nbytes for index in indices) <= _room(jobs[indices[0]].device):
            with suppress(torch.OutOfMemoryError, ValueError):
                yield from zip(indices, _batch([jobs[index] for index in indices]))
                continue
        for index in indices:
            yield index, jobs[index].decompose(jobs[index].read())


def _at_once(jobs: Sequence[Job], indices: Sequence[int], workers: int) -> Iterator[tuple[int, SpectralBasis]]:
    """Decompose by so many threads; one begins beside others only where there is room."""
    if not indices:
        return
    device = jobs[indices[0]].device
    caller = torch.cuda.current_stream(device) if device.type == "cuda" else None
    waiting, again = list(reversed(indices)), []
    streams = iter(_streams(caller.device, workers) if caller is not None else ())
    running: dict[Future[SpectralBasis | None], int] = {}
    try:
        # leaving it waits for those that have begun
        with ThreadPoolExecutor(workers, "decomposition", lambda: _on_a_stream(caller, streams)) as pool:
            while waiting or running:
                while waiting and len(running) < workers:
                    held = sum(jobs[index].nbytes for index in (*running.values(), waiting[-1]))
                    if running and held > _room(device):
                        break
                    index = waiting.pop()
                    running[pool.submit(_in_a_thread, jobs[index], caller)] = index
                done = list(wait(running, return_when=FIRST_COMPLETED).done)
                while done:
                    # nothing but the caller keeps a basis beside the next one
                    index, basis = running.pop(done[-1]), done.pop().result()
                    if basis is None:
                        again.append(index)
                    else:
                        yield index, basis
                    del basis
    finally:
        if caller is not None:
            # free blocks belong to the streams that they were allocated for, which nobody else uses
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()
    yield from _in_turn(jobs, [[index] for index in again])


@cache
def _streams(device: torch.device, count: int) -> tuple[torch.cuda.Stream, ...]:
    """Return the same streams for the life of the process: cuBLAS keeps a workspace for each that has multiplied."""
    return tuple(torch.cuda.Stream(device) for _ in range(count))


def _on_a_stream(caller: torch.cuda.Stream | None, streams: Iterator[torch.cuda.Stream]) -> None:
    if caller is not None:
        stream = next(streams)
        # the weights are as the caller left them
        stream.wait_stream(caller)
        torch.cuda.set_stream(stream)


@torch.no_grad()
def _in_a_thread(job: Job, caller: torch.cuda.Stream | None) -> SpectralBasis | None:
    """Return the basis, or None where it does not fit: an exception would keep what its frames hold."""
    try:
        basis = job.decompose(job.read())
    except torch.OutOfMemoryError:
        return None
    finally:
        # whether it failed or not, its kernels read what the caller may free then
        if caller is not None:
            torch.cuda.current_stream(caller.device).synchronize()
    for factor in (basis.U, basis.S, basis.Vh):
        # the caller goes on to use what was allocated for this stream
        if caller is not None and factor.is_cuda:
            factor.record_stream(caller)
    return basis


def _room(device: torch.device) -> float:
    """Return the bytes that decompositions may take beside what is there: of a host's memory nothing is known."""
    if device.type != "cuda":
        return math.inf
    free = torch.cuda.mem_get_info(device)[0]
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return SHARE * (free + unused)
