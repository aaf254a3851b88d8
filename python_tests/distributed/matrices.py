"""Matrices of every kind on ranks, trained with given gradients: what the ranks do in the tests beside this file."""

from itertools import product
from weakref import ref

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import gsr_kernels
from gsr_kernels.distributed import decompose
from gsr_kernels.distributed.layout import Layout

# tall, wide, square; with 2 rows or columns some ranks hold nothing
SHAPES = {"tall": (13, 6), "wide": (6, 13), "square": (8, 8), "low": (2, 9), "thin": (9, 2)}
OPTIONS = [
    {"out_of_span": "keep"},
    {"out_of_span": "drop"},
    {"out_of_span": "keep", "rank": 0.5},
    {"out_of_span": "drop", "rank": 0.5},
]
OFFLOADED = {"out_of_span": "drop", "basis_device": "cpu"}
STEPS = 3


def matrices(seed, shapes=SHAPES, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}


def make_model(weights):
    """A linear layer for each weight."""
    model = nn.ModuleDict({name: nn.Linear(*W.shape[::-1], bias=False, dtype=W.dtype) for name, W in weights.items()})
    for name, W in weights.items():
        model[name].weight = nn.Parameter(W.clone())
    return model


def distribute(model, mesh, placements):
    for layer in model.values():
        layer.weight = nn.Parameter(distribute_tensor(layer.weight.detach(), mesh, placements))


def set_gradients(model, gradients):
    for name, layer in model.items():
        W, G = layer.weight, gradients[name].clone()
        layer.weight.grad = distribute_tensor(G, W.device_mesh, W.placements) if hasattr(W, "placements") else G


def attached(model, **settings):
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    return optimizer, gsr_kernels.attach(model, optimizer, **{"rho": 0.7, **settings})


def train(model, settings, shapes=SHAPES):
    optimizer, handle = attached(model, **settings)
    for step in range(STEPS):
        set_gradients(model, matrices(100 + step, shapes))
        optimizer.step()
        if step == 0:
            handle.refresh()


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def error(model, reference):
    """The largest relative error of a weight."""
    return max(
        ((whole(layer.weight) - reference[name].weight).norm() / reference[name].weight.norm()).item()
        for name, layer in model.items()
    )


def agreement(layouts):
    """Errors against one process, by the sides of the mesh, placements and option."""
    meshes = {sides: init_device_mesh("cpu", sides) for sides, _ in layouts}
    errors = {}
    for settings in [*OPTIONS, OFFLOADED]:
        reference = make_model(matrices(0))
        train(reference, settings)
        for sides, placements in layouts:
            model = make_model(matrices(0))
            distribute(model, meshes[sides], placements)
            train(model, settings)
            errors[(sides, str(placements), *settings.values())] = error(model, reference)
    return errors


def layouts(world):
    """Every way to place a matrix on one mesh dimension and, where there are two, on both; of 8 ranks some."""
    rows, columns, replicas = Shard(0), Shard(1), Replicate()
    if world == 8:
        # what sides that differ may change
        return [((8,), (rows,)), *(((2, 4), pair) for pair in ((replicas, columns), (columns, rows), (rows, rows)))]
    chosen = [((world,), (placement,)) for placement in (rows, columns, replicas)]
    if world == 4:
        pairs = [(replicas, rows), (replicas, columns), (rows, columns), (columns, rows), (rows, rows)]
        chosen += [((2, 2), pair) for pair in pairs]
    return chosen


def beside_others():
    """Two meshes of 2 x 2 on 8 ranks, each with a model of its own: errors against one process, ranks, patience."""
    reference = make_model(matrices(0))
    train(reference, OPTIONS[0])
    mine = init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=("half", "data", "tensor"))["data", "tensor"]
    model = make_model(matrices(0))
    distribute(model, mine, (Shard(0), Shard(1)))
    train(model, OPTIONS[0])
    options = Layout(torch.Size(), mine).group._get_backend(torch.device("cpu")).options
    return error(model, reference), sorted(mine.mesh.flatten().tolist()), options._timeout.total_seconds()


class Wire(TorchDispatchMode):
    """Every collective that is called within, with the bytes that a rank gives to it."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "c10d" in function.namespace:
            # what is gathered is named after where it goes
            given = args["allgather" in function._opname]
            sent = [one for one in tree_leaves(given) if isinstance(one, torch.Tensor)]
            self.seen.append((function._opname, sum(one.numel() * one.element_size() for one in sent)))
        return function(*args, **(kwargs or {}))


def sent_in_steps(optimizer, act, *arguments):
    """What is sent within each step of an optimizer that ``act(*arguments)`` has an engine take."""
    seen, stepping = [], optimizer.step

    def watched():
        with Wire() as wire:
            stepping()
        seen.append(wire.seen)

    optimizer.step = watched
    act(*arguments)
    return seen


def traffic(layouts):
    """Messages of the second step of float32 weights, by the sides of the mesh, placements and option."""
    meshes = {sides: init_device_mesh("cpu", sides) for sides, _ in layouts}
    seen = {}
    for settings in OPTIONS:
        for sides, placements in layouts:
            model = make_model(matrices(0, dtype=torch.float32))
            distribute(model, meshes[sides], placements)
            optimizer, _ = attached(model, **settings)
            for step in range(2):
                set_gradients(model, matrices(100 + step, dtype=torch.float32))
                with Wire() as wire:
                    optimizer.step()
            seen[(sides, str(placements), *settings.values())] = wire.seen
    return seen


def without_a_gradient():
    """One rank has no gradient for a weight, and none has for another: what becomes of the weights on two ranks."""
    mesh = init_device_mesh("cpu", (2,))
    model = make_model(matrices(0))
    distribute(model, mesh, [Shard(0)])
    optimizer, _ = attached(model, out_of_span="keep")
    gradients = matrices(1)
    set_gradients(model, gradients)
    model["square"].weight.grad = None
    if mesh.get_local_rank() == 1:
        model["tall"].weight.grad = None
    optimizer.step()

    # the rows that the second rank holds count as zeros
    reference = make_model(matrices(0))
    same, _ = attached(reference, out_of_span="keep")
    gradients["tall"][7:] = 0
    set_gradients(reference, gradients)
    reference["square"].weight.grad = None
    same.step()
    with torch.no_grad():
        # it had no gradient to add δ to
        reference["tall"].weight[7:] = matrices(0)["tall"][7:]
    return error(model, reference)


def not_finite():
    """A NaN in one entry of a gradient, on one of two ranks: which gradients stayed as they came, and the counts."""
    mesh = init_device_mesh("cpu", (2,))
    gradients = matrices(1)
    gradients["wide"][0, 0] = float("nan")
    outcomes = {"skip": {}, "error": {}}
    for placement, out_of_span, nonfinite in product((Shard(0), Shard(1)), ("keep", "drop"), outcomes):
        model = make_model(matrices(0))
        distribute(model, mesh, [placement])
        optimizer, handle = attached(model, out_of_span=out_of_span, nonfinite=nonfinite)
        set_gradients(model, gradients)
        before = {name: layer.weight.grad.to_local().clone() for name, layer in model.items()}
        message = ""
        try:
            optimizer.step()
        except FloatingPointError as error:
            message = str(error)
        same = {
            name: torch.equal(layer.weight.grad.to_local().nan_to_num(7), before[name].nan_to_num(7))
            for name, layer in model.items()
        }
        key = str(placement), out_of_span
        if nonfinite == "skip":
            outcomes[nonfinite][key] = same, {weight.name: int(weight.skipped) for weight in handle.weights}
        else:
            outcomes[nonfinite][key] = message, all(same.values())
    return outcomes


def experts(count):
    """Experts on ranks of their own, some without any: errors against one process and what a step sends; GSRAdamW's."""
    generator = torch.Generator().manual_seed(1)
    weights, gradient = torch.randn(2, count, 4, 6, dtype=torch.float64, generator=generator)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))

    def made(own, place):
        model = nn.Module()
        model.experts = nn.Parameter(place(weights))
        optimizer = gsr_kernels.GSRAdamW(model, 1e-2, rho=0.7) if own else attached(model)[0]
        for _ in range(2):
            model.experts.grad = place(gradient)
            with Wire() as wire:
                optimizer.step()
        return whole(model.experts), wire.seen

    found = []
    for own in (False, True):
        expected, _ = made(own, torch.clone)
        experts, seen = made(own, lambda tensor: distribute_tensor(tensor.clone(), mesh, [Shard(0)]))
        found.append((((experts - expected).norm() / expected.norm()).item(), seen))
    return found


def one_weight_at_a_time():
    """The most whole weights that a rank held at once while it decomposed a model, and how many it decomposed."""
    held, most = [], 0
    decompose_one = decompose.decompose_one

    def counted(weight, W):
        nonlocal most
        held.append(ref(W))
        most = max(most, sum(one() is not None for one in held))
        return decompose_one(weight, W)

    model = make_model(matrices(0))
    distribute(model, init_device_mesh("cpu", (2,)), [Shard(0)])
    decompose.decompose_one = counted
    try:
        attached(model)
    finally:
        decompose.decompose_one = decompose_one
    return most, len(held)


def at_rate_zero():
    """Steps counted after a first step at lr 0, as a warm-up begins, where this rank may hold nothing of the weight."""
    weights = {"low": matrices(0)["low"]}
    model = make_model(weights)
    distribute(model, init_device_mesh("cpu", (dist.get_world_size(),)), [Shard(0)])
    optimizer = torch.optim.SGD(model.parameters(), 0.0, momentum=0.9)
    handle = gsr_kernels.attach(model, optimizer, rho=0.7)
    set_gradients(model, {"low": matrices(1)["low"]})
    optimizer.step()
    return handle.state_dict()["steps"], model["low"].weight.to_local().numel()
