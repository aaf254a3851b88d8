"""The predicted time of a step of sharded weights on many GPUs, beside the traffic of other methods.

A prediction from the assumptions here, no measurement. All weights are sharded over all GPUs (fully_shard), gradients
and bases are 16-bit, sums float32; products take the larger of their time and the memory's. GSR's one all-reduce waits
for the first products and the second ones for it; its buckets, where there are several, travel as
``distributed/step.py`` has them. Of the other methods all of the wire is hidden, at best.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import ceil, log2
from typing import Any

import numpy as np

from bench.docs.pages import table as markdown
from bench.models import model
from gsr_kernels.distributed.step import BUCKET

GPUS = (8, 64, 1024)
# H800 in nodes of 8, by datasheet: bytes a second of NVLink one way and of network a GPU, and of memory
NODE, NVLINK, NETWORK, MEMORY = 8, 200e9, 50e9, 3.35e12
# FLOP a second that one H200 reached in products
FLOP = 790e12
# seconds of a message to a neighbour in the node and to another node (assumed)
NEAR, FAR = 4e-6, 12e-6

# bytes that a GPU sends, seconds on the wire, seconds of the step; by the sides d1, d2 of all matrices, and the GPUs
Prediction = tuple[float, float, float]
Method = Callable[[np.ndarray, np.ndarray, int], Prediction]


def all_reduce(size: Any, gpus: int) -> tuple[Any, Any]:
    """Return the bytes that a GPU sends and the seconds, by a ring in the node and one across nodes."""
    inside, nodes = min(gpus, NODE), max(1, gpus // NODE)
    local, across = 2 * (1 - 1 / inside) * size, 2 * (1 - 1 / nodes) * size / inside
    return local + across, local / NVLINK + across / NETWORK + 2 * (log2(inside) * NEAR + log2(nodes) * FAR)


def all_gather(size: Any, gpus: int) -> tuple[Any, Any]:
    """Return the same for ``size`` gathered bytes: half of an all-reduce, which also scatters."""
    sent, seconds = all_reduce(size, gpus)
    return sent / 2, seconds / 2


def exchange(size: float, gpus: int) -> tuple[float, float]:
    """Return the same where each GPU sends ``size`` bytes to all others, alike to each."""
    nodes = max(1, gpus // NODE)
    outside = size * (1 - 1 / nodes)
    seconds = max((size - outside) / NVLINK, outside / NETWORK)
    return size, seconds + log2(min(gpus, NODE)) * NEAR + log2(nodes) * FAR


def compute(flop: Any, size: Any) -> Any:
    """Return the seconds for products that read and write ``size`` bytes."""
    return np.maximum(flop / FLOP, size / MEMORY)


def in_buckets(elements: float, seconds: float, gpus: int) -> Prediction:
    """Predict float32 elements summed between two halves of the products, each bucket under those of its neighbours."""
    count = ceil(4 * elements / BUCKET)
    sent, wire = all_reduce(4 * elements / count, gpus)
    half = seconds / 2 / count
    # when the products and the wire have come to their end so far
    products, arrived = half, [half + wire]
    for _ in range(count - 1):
        products += half
        arrived.append(max(products, arrived[-1]) + wire)
        products = max(products, arrived[-2]) + half
    return count * sent, count * wire, max(products, arrived[-1]) + half


def at_best(traffic: tuple[float, float], seconds: float) -> Prediction:
    """Predict all of the shorter one hidden under the other."""
    return *traffic, max(traffic[1], seconds)


def gsr_keep(d1: np.ndarray, d2: np.ndarray, gpus: int, rank: float = np.inf) -> Prediction:
    """Predict G V and (U δ) Vh on the rows of a rank: both products read all of Vh."""
    k = np.minimum(np.minimum(d1, d2), rank)
    # G twice and G' once, U twice; Vh twice, whole
    moved = 2 * (3 * d1 * d2 / gpus + 2 * d1 * k / gpus + 2 * k * d2)
    return in_buckets(k.sum(), compute((4 * d1 * d2 * k / gpus).sum(), moved.sum()), gpus)


def gsr_shared(d1: np.ndarray, d2: np.ndarray, gpus: int) -> Prediction:
    """Predict the same of shared bases: Vh comes twice, each time under the product of the weight before it."""
    k = np.minimum(d1, d2)
    gathered, seconds = all_gather(2 * k * d2, gpus)
    # half of the work, and Vh written as it comes
    moved = 2 * (1.5 * d1 * d2 / gpus + d1 * k / gpus + 2 * k * d2)
    end = np.maximum(seconds, compute(2 * d1 * d2 * k / gpus, moved))
    sent, wire = all_reduce(4 * k.sum(), gpus)
    return sent + 2 * gathered.sum(), wire + 2 * seconds.sum(), wire + 2 * end.sum()


def gsr_drop(d1: np.ndarray, d2: np.ndarray, gpus: int, long_side: bool) -> Prediction:
    """Predict Uᵀ G and U A of whole bases.

    Sharded along the long side all of A is summed, along the short one U is read whole.
    """
    long, k = np.maximum(d1, d2), np.minimum(d1, d2)
    whole, sharded = (k, long) if long_side else (long, k)
    # a square weight has nothing outside its span: a diagonal will do
    elements = np.where(long_side & (d1 != d2), k * k, k)
    moved = 2 * (2 * long * k / gpus + 2 * k * sharded / gpus + 2 * k * whole)
    return in_buckets(elements.sum(), compute((4 * long * k * k / gpus).sum(), moved.sum()), gpus)


def muon_everywhere(d1: np.ndarray, d2: np.ndarray, gpus: int) -> Prediction:
    """Predict every gradient gathered on every GPU; each orthogonalizes all of them, 5 Newton-Schulz iterations."""
    size = 2 * (d1 * d2).sum()
    return at_best(all_gather(size, gpus), compute(_newton_schulz(d1, d2).sum(), 20 * size))


def muon_owned(d1: np.ndarray, d2: np.ndarray, gpus: int) -> Prediction:
    """Predict every gradient gathered on one GPU, which sends its update back; matrices divide evenly, at best."""
    size, flop = 2 * (d1 * d2).sum() / gpus, _newton_schulz(d1, d2)
    sent, seconds = exchange(size, gpus)
    # no GPU has less than one matrix to do
    return at_best((2 * sent, 2 * seconds), compute(max(flop.sum() / gpus, flop.max()), 20 * size))


def _newton_schulz(d1: np.ndarray, d2: np.ndarray) -> np.ndarray:
    """Return the FLOP of X Xᵀ, its square, and their product with X, 5 times."""
    k = np.minimum(d1, d2)
    return 5 * (4 * d1 * d2 * k + 2 * k**3)


def osft(d1: np.ndarray, d2: np.ndarray, gpus: int) -> Prediction:
    """Predict half of the directions projected out: U_hᵀ dU summed in float32, V_h gathered in 16 bits."""
    half = np.minimum(d1, d2) / 2
    moved = 2 * (d1 * half * 5 / gpus + d2 * half * 3 / gpus + 2 * half * d2)
    summed, gathered = all_reduce((4 * half * half).sum(), gpus), all_gather((2 * half * d2).sum(), gpus)
    traffic = summed[0] + gathered[0], summed[1] + gathered[1]
    return at_best(traffic, compute((4 * (d1 + d2) * half * half / gpus).sum(), moved.sum()))


METHODS: dict[str, Method] = {
    "GSR, keep": gsr_keep,
    "GSR, keep, shard_bases": gsr_shared,
    "GSR, keep, rank 256": partial(gsr_keep, rank=256),
    "GSR, drop, sharded along the short side": partial(gsr_drop, long_side=False),
    "GSR, drop, sharded along the long side": partial(gsr_drop, long_side=True),
    "Muon, gathered on one GPU each": muon_owned,
    "Muon, gathered everywhere": muon_everywhere,
    "OSFT, half protected": osft,
}


def table() -> str:
    """Return a table a model, for the documentation."""
    tables = []
    for name in ("falcon3-1b", "llama3-8b"):
        d1, d2 = np.array(model(name).matrices, dtype=float).T
        header, lines = [name], []
        for gpus in GPUS:
            header += [f"{gpus} GPUs: MB sent", "wire ms", "step ms"]
        for title, predict in METHODS.items():
            cells = []
            for sent, wire, step in (predict(d1, d2, gpus) for gpus in GPUS):
                cells += [f"{sent / 1e6:,.3g}" if sent < 1e8 else f"{sent / 1e6:,.0f}"]
                cells += [f"{1e3 * wire:.2f}", f"{1e3 * step:.2f}"]
            lines.append([title, *cells])
        tables.append(markdown(header, lines, f"l{'r' * (len(header) - 1)}"))
    return "\n\n".join(tables)
