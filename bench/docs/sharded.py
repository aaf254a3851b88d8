"""The predicted time of a step of sharded weights on many GPUs, beside the traffic of other methods.

A prediction from the assumptions in ``Machine`` and in each method, not a measurement. All weights are sharded over all
GPUs (fully_shard), gradients and bases are 16-bit, sums float32; products take the larger of their time and the
memory's. GSR's one all-reduce waits for the first products and the second ones for it; its buckets, where there are
several, travel as ``distributed/step.py`` has them. Of the other methods all of the wire is hidden, at best.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, log2

from bench.models import model
from gsr_kernels.distributed.step import BUCKET

GPUS = (8, 64, 1024)


@dataclass(frozen=True)
class Machine:
    """H800 in nodes of 8, by datasheet: 400 GB/s of NVLink, both ways, and 8 x 400 Gb/s of network a node.

    Products at the rate that one H200 reached; a message takes 4 µs to a neighbour in the node, 12 µs to another node
    (assumed).
    """

    node: int = 8
    nvlink: float = 200e9
    network: float = 50e9
    near: float = 4e-6
    far: float = 12e-6
    flop: float = 790e12
    memory: float = 3.35e12

    def all_reduce(self, size: float, gpus: int) -> tuple[float, float]:
        """Return the bytes that a GPU sends and the seconds, by a ring in the node and one across nodes."""
        inside, nodes = min(gpus, self.node), max(1, gpus // self.node)
        local, across = 2 * (inside - 1) / inside * size, 2 * (nodes - 1) / nodes * size / inside
        seconds = local / self.nvlink + across / self.network
        return local + across, seconds + 2 * (log2(inside) * self.near + log2(nodes) * self.far)

    def all_gather(self, size: float, gpus: int) -> tuple[float, float]:
        """Return the same for ``size`` gathered bytes: half of an all-reduce, which also scatters."""
        sent, seconds = self.all_reduce(size, gpus)
        return sent / 2, seconds / 2

    def exchange(self, size: float, gpus: int) -> tuple[float, float]:
        """Return the same where each GPU sends ``size`` bytes to all others, alike to each."""
        nodes = max(1, gpus // self.node)
        outside = size * (1 - 1 / nodes)
        seconds = max((size - outside) / self.nvlink, outside / self.network)
        return size, seconds + log2(min(gpus, self.node)) * self.near + log2(nodes) * self.far

    def compute(self, flop: float, size: float) -> float:
        """Return the seconds for products that read and write ``size`` bytes."""
        return max(flop / self.flop, size / self.memory)


# bytes that a GPU sends, seconds on the wire, seconds of the step
Prediction = tuple[float, float, float]
Shapes = list[tuple[int, int]]


def in_buckets(machine: Machine, size: float, gpus: int, compute: float) -> Prediction:
    """Predict ``size`` bytes summed between two halves of the products, each bucket under those of its neighbours."""
    count = ceil(size / BUCKET)
    sent, wire = machine.all_reduce(size / count, gpus)
    half = compute / 2 / count
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


def gsr_keep(rank: int | None) -> Callable[[Machine, Shapes, int], Prediction]:
    """Predict G V and (U δ) Vh on the rows of a rank: both products read all of Vh."""

    def predict(machine: Machine, shapes: Shapes, gpus: int) -> Prediction:
        flop = moved = elements = 0.0
        for d1, d2 in shapes:
            k = min(d1, d2, rank or d1)
            flop += 4 * d1 * d2 * k / gpus
            # G twice and G' once, U twice; Vh twice, whole
            moved += 2 * (3 * d1 * d2 / gpus + 2 * d1 * k / gpus + 2 * k * d2)
            elements += k
        return in_buckets(machine, 4 * elements, gpus, machine.compute(flop, moved))

    return predict


def gsr_shared(machine: Machine, shapes: Shapes, gpus: int) -> Prediction:
    """Predict the same of shared bases: Vh comes twice, each time under the product of the weight before it."""
    sent = wire = end = elements = 0.0
    for d1, d2 in shapes:
        k = min(d1, d2)
        gathered = machine.all_gather(2 * k * d2, gpus)
        # half of the work, and Vh written as it comes
        moved = 2 * (1.5 * d1 * d2 / gpus + d1 * k / gpus + 2 * k * d2)
        sent, wire = sent + 2 * gathered[0], wire + 2 * gathered[1]
        end += 2 * max(gathered[1], machine.compute(2 * d1 * d2 * k / gpus, moved))
        elements += k
    summed = machine.all_reduce(4 * elements, gpus)
    return sent + summed[0], wire + summed[1], end + summed[1]


def gsr_drop(long_side: bool) -> Callable[[Machine, Shapes, int], Prediction]:
    """Predict Uᵀ G and U A of whole bases.

    Sharded along the long side all of A is summed, along the short one U is read whole.
    """

    def predict(machine: Machine, shapes: Shapes, gpus: int) -> Prediction:
        flop = moved = elements = 0.0
        for d1, d2 in shapes:
            long, k = max(d1, d2), min(d1, d2)
            flop += 4 * long * k * k / gpus
            whole, sharded = (k, long) if long_side else (long, k)
            # a square weight has nothing outside its span: a diagonal will do
            moved += 2 * (2 * long * k / gpus + 2 * k * sharded / gpus + 2 * k * whole)
            elements += k * k if long_side and d1 != d2 else k
        return in_buckets(machine, 4 * elements, gpus, machine.compute(flop, moved))

    return predict


def muon_everywhere(machine: Machine, shapes: Shapes, gpus: int) -> Prediction:
    """Predict every gradient gathered on every GPU; each orthogonalizes all of them, 5 Newton-Schulz iterations."""
    size = sum(2 * d1 * d2 for d1, d2 in shapes)
    return at_best(*machine.all_gather(size, gpus), machine.compute(_newton_schulz(shapes), 20 * size))


def muon_owned(machine: Machine, shapes: Shapes, gpus: int) -> Prediction:
    """Predict every gradient gathered on one GPU, which sends its update back; matrices divide evenly, at best."""
    size = sum(2 * d1 * d2 for d1, d2 in shapes)
    sent, seconds = machine.exchange(size / gpus, gpus)
    # no GPU has less than one matrix to do
    busy = max(_newton_schulz(shapes) / gpus, _newton_schulz([max(shapes, key=lambda s: s[0] * s[1] * min(s))]))
    return at_best(2 * sent, 2 * seconds, machine.compute(busy, 20 * size / gpus))


def _newton_schulz(shapes: Shapes) -> float:
    """Return the FLOP of X Xᵀ, its square, and their product with X, 5 times."""
    return sum(5 * (4 * d1 * d2 * min(d1, d2) + 2 * min(d1, d2) ** 3) for d1, d2 in shapes)


def osft(machine: Machine, shapes: Shapes, gpus: int) -> Prediction:
    """Predict half of the directions projected out: U_hᵀ dU summed in float32, V_h gathered in 16 bits."""
    flop = summed = gathered = moved = 0.0
    for d1, d2 in shapes:
        half = min(d1, d2) / 2
        flop += 4 * (d1 + d2) * half * half / gpus
        summed += 4 * half * half
        gathered += 2 * half * d2
        moved += 2 * (d1 * half * 5 / gpus + d2 * half * 3 / gpus + 2 * half * d2)
    reduced, gather = machine.all_reduce(summed, gpus), machine.all_gather(gathered, gpus)
    return at_best(reduced[0] + gather[0], reduced[1] + gather[1], machine.compute(flop, moved))


METHODS: dict[str, Callable[[Machine, Shapes, int], Prediction]] = {
    "GSR, keep": gsr_keep(None),
    "GSR, keep, shard_bases": gsr_shared,
    "GSR, keep, rank 256": gsr_keep(256),
    "GSR, drop, sharded along the short side": gsr_drop(False),
    "GSR, drop, sharded along the long side": gsr_drop(True),
    "Muon, gathered on one GPU each": muon_owned,
    "Muon, gathered everywhere": muon_everywhere,
    "OSFT, half protected": osft,
}


def table() -> str:
    """Return a table a model, for the documentation."""
    machine, lines = Machine(), []
    for name in ("falcon3-1b", "llama3-8b"):
        shapes = model(name).matrices
        heads = " | ".join(f"{gpus} GPUs: MB sent | wire ms | step ms" for gpus in GPUS)
        lines += [f"| {name} | {heads} |", f"|---|{'--:|' * 3 * len(GPUS)}"]
        for title, predict in METHODS.items():
            cells = []
            for gpus in GPUS:
                sent, wire, step = predict(machine, shapes, gpus)
                cells += [f"{sent / 1e6:,.3g}" if sent < 1e8 else f"{sent / 1e6:,.0f}"]
                cells += [f"{1e3 * wire:.2f}", f"{1e3 * step:.2f}"]
            lines.append(f"| {title} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines).strip()
