"""Steps whose sums go out in several buckets: what the ranks do in the tests beside this file."""

from contextlib import contextmanager

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Shard
from torch.utils._python_dispatch import TorchDispatchMode

from gsr_kernels.distributed import step as sharded
from gsr_kernels.distributed.layout import Layout
from python_tests.distributed import matrices
from python_tests.distributed.decisions import refused
from python_tests.distributed.matrices import Wire, attached, distribute, error, make_model, set_gradients, train
from python_tests.distributed.memory import Held, nothing_sent

# sums of 36 elements where "drop" meets a sharded long side, a diagonal each where it is free
EQUAL = {f"equal{index}": (9 + index, 6) for index in range(6)}
SETTINGS = [
    {"out_of_span": "keep"},
    {"out_of_span": "drop"},
    {"out_of_span": "drop", "nonfinite": "error"},
    {"out_of_span": "drop", "basis_device": "cpu"},
    {"out_of_span": "drop", "rank": 3},
]


@contextmanager
def buckets_of(size):
    """Buckets of so many bytes."""
    usual, sharded.BUCKET = sharded.BUCKET, size
    try:
        yield
    finally:
        sharded.BUCKET = usual


def in_buckets(sides, placements, elements):
    """Errors against one process, and the traffic of a step, where a bucket has so many elements in float64."""
    mesh = init_device_mesh("cpu", sides)
    found = []
    for settings in SETTINGS:
        reference = make_model(matrices.matrices(0, EQUAL))
        train(reference, settings, EQUAL)
        with buckets_of(8 * elements):
            model = make_model(matrices.matrices(0, EQUAL))
            distribute(model, mesh, placements)
            train(model, settings, EQUAL)
            far = error(model, reference)
            optimizer, _ = attached(model, **settings)
            for step in range(2):
                set_gradients(model, matrices.matrices(step, EQUAL))
                with Wire() as wire:
                    optimizer.step()
        found.append((far, wire.seen))
    return found


def products_before(elements):
    """Counts of the products that a rank had launched when it sent each bucket of a step."""
    model = make_model(matrices.matrices(0, EQUAL))
    distribute(model, init_device_mesh("cpu", (2,)), [Shard(0)])
    with buckets_of(8 * elements):
        optimizer, _ = attached(model, out_of_span="drop")
        set_gradients(model, matrices.matrices(1, EQUAL))
        optimizer.step()
        with Order("allreduce_") as order:
            optimizer.step()
    return order.before


class Order(TorchDispatchMode):
    """The matrix products that went before each collective of a name within."""

    def __init__(self, name):
        super().__init__()
        self.before, self._products, self._name = [], 0, name

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self._products += function._opname == "mm"
        if function._opname == self._name:
            self.before.append(self._products)
        return function(*args, **(kwargs or {}))


def one_a_weight():
    """Each weight a bucket of its own: an error against one process with gradients missing, and with a NaN in one."""
    with buckets_of(1):
        return matrices.without_a_gradient(), matrices.not_finite()


def held(sides, placements):
    """The most that sums held at once, in buckets, as a step of equal weights fills and empties them."""
    mesh, elements, shape = init_device_mesh("cpu", sides), 2**16, torch.Size((2**8, 2**8))
    parts = [Layout(shape, mesh, placements)] * 8, [shape] * 8, [torch.float32] * 8, [4 * elements] * 8
    with buckets_of(8 * elements), nothing_sent(), Held() as held:
        buckets = sharded.make_buckets(*parts)
        sums = sharded.Sums({index: bucket for bucket in buckets for index in bucket.indices})
        before = []
        for indices in [*(bucket.indices for bucket in buckets), []]:
            for index in indices:
                sums.add(index, torch.ones(shape))
            for index in before:
                sums.take(index)
            before = indices
    return held.most / (8 * elements)


def unlike_memberships():
    """Three ranks, of which one is in more groups than the others, and a bucket a weight: errors of each.

    And what attach() says where such ranks are to share their bases.
    """
    meshes = {"first": [0, 1], "second": [0, 2], "third": [0, 1, 2], "fourth": [0, 1, 2]}
    meshes = {name: DeviceMesh("cpu", ranks) for name, ranks in meshes.items()}
    here = {name: mesh for name, mesh in meshes.items() if mesh.get_coordinate() is not None}
    shapes = dict.fromkeys(meshes, (9, 6))
    weights, gradients = (matrices.matrices(seed, shapes) for seed in range(2))
    reference, mine = make_model(weights), make_model({name: weights[name] for name in here})
    for name, mesh in here.items():
        distribute({name: mine[name]}, mesh, [Shard(0)])
    with buckets_of(1):
        for model in (reference, mine):
            optimizer, _ = attached(model, out_of_span="drop")
            set_gradients(model, gradients)
            optimizer.step()
    return error(mine, reference), refused(attached, mine, shard_bases=True)
