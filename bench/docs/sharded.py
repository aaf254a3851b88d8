"""The predicted time of a step of sharded weights on many GPUs, beside the traffic of other methods.

A prediction from the assumptions in ``Machine`` and in each method, not a measurement. All weights are sharded over all
GPUs (fully_shard), gradients and bases are 16-bit, sums float32; products take the larger of their time and the
memory's. GSR's one all-reduce waits for the first products and the second ones for it; its buckets, where there are
several, travel as ``distributed/step.py`` has them. Of the other methods all of the wire is hidden, at best.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import ceil, log2
from typing import Any

import numpy as np

from bench.docs.pages import table as markdown
from bench.models import model
from gsr_kernels.distributed.step import BUCKET

GPUS = (8, 64, 1024)


@dataclass(frozen=True)
class Machine:
    """H800 in nodes of 8, by datasheet: 400 GB/s of NVLink, both ways, and 8 x 400 Gb/s of network a node.

    Products at the rate that one H200 reached; a message takes 4 µs to a neighbour in the node, 12 µs to another node
    (assumed). Sizes in bytes are numbers or arrays.
    """

    gpus: int
    node: int = 8
    nvlink: float = 200e9
    network: float = 50e9
    near: float = 4e-6
    far: float = 12e-6
    flop: float = 790e12
    memory: float = 3.35e12

    @property
    def inside(self) -> int:
        """Return the GPUs of a node that take part."""
        return min(self.gpus, self.node)

    @property
    def nodes(self) -> int:
        """Return the nodes that take part."""
        return max(1, self.gpus // self.node)

    @property
    def delay(self) -> float:
        """Return the seconds of the messages of half an all-reduce."""
        return log2(self.inside) * self.near + log2(self.nodes) * self.far

    def all_reduce(self, size: Any) -> tuple[Any, Any]:
        """Return the bytes that a GPU sends and the seconds, by a ring in the node and one across nodes."""
        local, across = 2 * (1 - 1 / self.inside) * size, 2 * (1 - 1 / self.nodes) * size / self.inside
        return local + across, local / self.nvlink + across / self.network + 2 * self.delay

    def all_gather(self, size: Any) -> tuple[Any, Any]:
        """Return the same for ``size`` gathered bytes: half of an all-reduce, which also scatters."""
        sent, seconds = self.all_reduce(size)
        return sent / 2, seconds / 2

    def exchange(self, size: float) -> tuple[float, float]:
        """Return the same where each GPU sends ``size`` bytes to all others, alike to each."""
        outside = size * (1 - 1 / self.nodes)
        return size, max((size - outside) / self.nvlink, outside / self.network) + self.delay

    def compute(self, flop: Any, size: Any) -> Any:
        """Return the seconds for products that read and write ``size`` bytes."""
        return np.maximum(flop / self.flop, size / self.memory)


# bytes that a GPU sends, seconds on the wire, seconds of the step; by the sides d1, d2 of all matrices
Prediction = tuple[float, float, float]
Method = Callable[[Machine, np.ndarray, np.ndarray], Prediction]


def in_buckets(machine: Machine, elements: float, flop: Any, moved: Any) -> Prediction:
    """Predict float32 elements summed between two halves of the products, each bucket under those of its neighbours."""
    size = 4 * elements
    count = ceil(size / BUCKET)
    sent, wire = machine.all_reduce(size / count)
    half = machine.compute(flop.sum(), moved.sum()) / 2 / count
    # when the products and the wire have come to their end so far
    products, arrived = half, [half + wire]
    for _ in range(count - 1):
        products += half
        arrived.append(max(products, arrived[-1]) + wire)
        products = max(products, arrived[-2]) + half
    return count * sent, count * wire, max(products, arrived[-1]) + half


def at_best(sent: float, wire: float, compute: float) -> Prediction:
    """Predict all of the shorter one hidden under the other."""
    return sent, wire, max(wire, compute)


def gsr_keep(machine: Machine, d1: np.ndarray, d2: np.ndarray, rank: float = np.inf) -> Prediction:
    """Predict G V and (U δ) Vh on the rows of a rank: both products read all of Vh."""
    k = np.minimum(np.minimum(d1, d2), rank)
    # G twice and G' once, U twice; Vh twice, whole
    moved = 2 * (3 * d1 * d2 / machine.gpus + 2 * d1 * k / machine.gpus + 2 * k * d2)
    return in_buckets(machine, k.sum(), 4 * d1 * d2 * k / machine.gpus, moved)


def gsr_shared(machine: Machine, d1: np.ndarray, d2: np.ndarray) -> Prediction:
    """Predict the same of shared bases: Vh comes twice, each time under the product of the weight before it."""
    k = np.minimum(d1, d2)
    gathered, seconds = machine.all_gather(2 * k * d2)
    # half of the work, and Vh written as it comes
    moved = 2 * (1.5 * d1 * d2 / machine.gpus + d1 * k / machine.gpus + 2 * k * d2)
    end = np.maximum(seconds, machine.compute(2 * d1 * d2 * k / machine.gpus, moved))
    sent, wire = machine.all_reduce(4 * k.sum())
    return sent + 2 * gathered.sum(), wire + 2 * seconds.sum(), wire + 2 * end.sum()


def gsr_drop(machine: Machine, d1: np.ndarray, d2: np.ndarray, long_side: bool) -> Prediction:
    """Predict Uᵀ G and U A of whole bases.

    Sharded along the long side all of A is summed, along the short one U is read whole.
    """
    long, k = np.maximum(d1, d2), np.minimum(d1, d2)
    whole, sharded = (k, long) if long_side else (long, k)
    # a square weight has nothing outside its span: a diagonal will do
    elements = np.where(long_side & (d1 != d2), k * k, k)
    moved = 2 * (2 * long * k / machine.gpus + 2 * k * sharded / machine.gpus + 2 * k * whole)
    return in_buckets(machine, elements.sum(), 4 * long * k * k / machine.gpus, moved)


def muon_everywhere(machine: Machine, d1: np.ndarray, d2: np.ndarray) -> Prediction:
    """Predict every gradient gathered on every GPU; each orthogonalizes all of them, 5 Newton-Schulz iterations."""
    size = 2 * (d1 * d2).sum()
    return at_best(*machine.all_gather(size), machine.compute(_newton_schulz(d1, d2).sum(), 20 * size))


def muon_owned(machine: Machine, d1: np.ndarray, d2: np.ndarray) -> Prediction:
    """Predict every gradient gathered on one GPU, which sends its update back; matrices divide evenly, at best."""
    size, flop = 2 * (d1 * d2).sum() / machine.gpus, _newton_schulz(d1, d2)
    sent, seconds = machine.exchange(size)
    # no GPU has less than one matrix to do
    return at_best(2 * sent, 2 * seconds, machine.compute(max(flop.sum() / machine.gpus, flop.max()), 20 * size))


def _newton_schulz(d1: np.ndarray, d2: np.ndarray) -> np.ndarray:
    """Return the FLOP of X Xᵀ, its square, and their product with X, 5 times."""
    k = np.minimum(d1, d2)
    return 5 * (4 * d1 * d2 * k + 2 * k**3)


def osft(machine: Machine, d1: np.ndarray, d2: np.ndarray) -> Prediction:
    """Predict half of the directions projected out: U_hᵀ dU summed in float32, V_h gathered in 16 bits."""
    half = np.minimum(d1, d2) / 2
    moved = 2 * (d1 * half * 5 / machine.gpus + d2 * half * 3 / machine.gpus + 2 * half * d2)
    compute = machine.compute((4 * (d1 + d2) * half * half / machine.gpus).sum(), moved.sum())
    summed, gathered = machine.all_reduce((4 * half * half).sum()), machine.all_gather((2 * half * d2).sum())
    return at_best(summed[0] + gathered[0], summed[1] + gathered[1], compute)


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
            for sent, wire, step in (predict(Machine(gpus), d1, d2) for gpus in GPUS):
                cells += [f"{sent / 1e6:,.3g}" if sent < 1e8 else f"{sent / 1e6:,.0f}"]
                cells += [f"{1e3 * wire:.2f}", f"{1e3 * step:.2f}"]
            lines.append([title, *cells])
        tables.append(markdown(header, lines, f"l{'r' * (len(header) - 1)}"))
    return "\n\n".join(tables)
