"""Randomized bases of weights that are sharded over ranks: what the ranks do in the test beside this file."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard

import gsr_kernels
from bench.decompositions import matrix
from gsr_kernels.distributed import decompose, sharded_sketch
from python_tests.distributed.decisions import refused
from python_tests.distributed.factors import wholes
from python_tests.distributed.matrices import attached, distribute, make_model, matrices
from python_tests.distributed.memory import Held
from python_tests.distributed.storage import Decomposed
from python_tests.linalg.truth import SPECTRA, defect, remainder

# with 3 rows or columns one of 4 ranks holds nothing
SHAPES = {"tall": (57, 31), "wide": (31, 57), "square": (40, 40), "low": (3, 41), "thin": (41, 3)}
SHARE = 0.2


def decomposed(weights, mesh, placements, **settings):
    """The handle of a model of these weights, of which no rank decomposed one by itself."""
    model = make_model(weights)
    distribute(model, mesh, placements)
    with Decomposed() as whole:
        _, handle = attached(model, randomized=True, **settings)
    assert whole.count == 0
    return handle


def bases(handle):
    """See ``wholes``, by name; each is marked as randomized."""
    assert all(weight.basis.randomized for weight in handle.weights)
    return {weight.name.removesuffix(".weight"): wholes(weight) for weight in handle.weights}


def agreement(cases):
    """The largest relative error of a factor against one process, of the pairs' signs apart, and whether bits agree."""
    weights = matrices(0, SHAPES)
    expected = {name: gsr_kernels.randomized_svd(W, max(1, round(SHARE * min(W.shape)))) for name, W in weights.items()}
    errors = {}
    for sides, placements, shared in cases:
        handle = decomposed(weights, init_device_mesh("cpu", sides), placements, rank=SHARE, shard_bases=shared)
        for name, (factors, same) in bases(handle).items():
            U, S, Vh, _ = expected[name]
            sign = (factors["U"] * U).sum(0).sign()
            far = [factors["U"] * sign - U, (factors["S"] - S) / S[0], factors["Vh"] * sign[:, None] - Vh]
            errors[sides, str(placements), shared, name] = max(one.abs().max().item() for one in far), same
    return errors


def spectra(sides, placements):
    """Spectral error over the best of that rank, and the largest defect, by spectrum and rank."""
    found = {}
    torch.manual_seed(0)
    for rank in (48, 12):
        weights = {kind: matrix(2 * len(S), len(S), S) for kind, S in SPECTRA.items()}
        handle = decomposed(weights, init_device_mesh("cpu", sides), placements, rank=rank)
        for kind, (factors, same) in bases(handle).items():
            U, S, Vh = factors.values()
            error = remainder(weights[kind], U, S, Vh) / SPECTRA[kind][rank].item()
            found[kind, rank] = error, max(defect(U), defect(Vh.mT)), same
    return found


def degenerate():
    """The rest of each matrix without full rank, and the largest defect."""
    torch.manual_seed(0)
    duplicates = torch.randn(60, 48)
    duplicates[:, 1] = duplicates[:, 0]
    weights = {"zero": torch.zeros(30, 20), "twins": duplicates, "rank 3": torch.randn(50, 3) @ torch.randn(3, 40)}
    weights |= {"huge": 1e30 * torch.randn(40, 30), "tiny": 1e-30 * torch.randn(30, 40)}
    found = {}
    for placement in (Shard(0), Shard(1)):
        handle = decomposed(weights, init_device_mesh("cpu", (dist.get_world_size(),)), [placement], rank=7)
        for name, (factors, same) in bases(handle).items():
            U, S, Vh = factors.values()
            best = torch.linalg.svdvals(weights[name].double())
            left = remainder(weights[name], U, S, Vh) / (best[7] + 1e-6 * best[0] + 1e-40)
            found[name, str(placement)] = left.item(), max(defect(U), defect(Vh.mT)), same
    return found


def rounded_otherwise(layouts):
    """True if all ranks have the same squares and factors where every group of them rounds its sums in its own way."""
    add, gram, same = sharded_sketch._add, sharded_sketch._Side.gram, []

    def rounding(tensor, group):
        add(tensor, group)
        tensor.mul_(1 + 1e-14 * sum(dist.get_process_group_ranks(group)))

    def seen(side, Y):
        square = gram(side, Y)
        first = square.clone()
        dist.broadcast(first, 0)
        same.append(torch.equal(first, square))
        return square

    sharded_sketch._add, sharded_sketch._Side.gram = rounding, seen
    try:
        for sides, placements in layouts:
            handle = decomposed(matrices(0, SHAPES), init_device_mesh("cpu", sides), placements, rank=SHARE)
            same += [bits for _, bits in bases(handle).values()]
    finally:
        sharded_sketch._add, sharded_sketch._Side.gram = add, gram
    return len(same) > 0 and all(same)


def broken():
    """Error of attach() where a rank's shard holds NaN."""
    weights = {"good": torch.randn(20, 20), "bad": torch.randn(20, 20)}
    weights["bad"][0, 0] = float("nan")
    model = make_model(weights)
    distribute(model, init_device_mesh("cpu", (dist.get_world_size(),)), [Shard(0)])
    return refused(attached, model, rank=3, randomized=True)


def memory(layouts):
    """Elements held, at most, while a basis of 48 directions is found, of the largest tensor, and the shard's sides."""
    weights = {"layer": torch.randn(1024, 768)}
    found, by_rank = {}, sharded_sketch.basis_from_shards
    # the int64 copies of a fingerprint are as large as they are for any weight
    origin, sharded_sketch.origin = sharded_sketch.origin, lambda weight: ""

    def counted(weight):
        sides_of_part.append(weight.held.shape)
        with held:
            return by_rank(weight)

    decompose.basis_from_shards = counted
    try:
        for sides, placements in layouts:
            held, sides_of_part = Held(), []
            decomposed(weights, init_device_mesh("cpu", sides), placements, rank=48)
            found[sides, str(placements)] = held.most // 4, held.largest, *sides_of_part
    finally:
        decompose.basis_from_shards, sharded_sketch.origin = by_rank, origin
    return found


def kept(folder):
    """Runs that find their bases in a directory that a run with sketches wrote: one like it, and an exact one."""
    weights = matrices(0, SHAPES)
    mesh, path = init_device_mesh("cpu", (dist.get_world_size(),)), Path(folder, "bases")
    handles = [decomposed(weights, mesh, [Shard(0)], rank=SHARE, bases=path) for _ in range(2)]
    same = [torch.equal(one.basis.U, other.basis.U) for one, other in zip(*(handle.weights for handle in handles))]
    model = make_model(weights)
    distribute(model, mesh, [Shard(0)])
    _, exact = attached(model, rank=SHARE, bases=path)
    return all(same), [weight.basis.randomized for handle in (handles[1], exact) for weight in handle.weights]
