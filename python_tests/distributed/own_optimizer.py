"""GSRAdamW on weights that two ranks share: what the ranks do in the tests beside this file."""

import os
from unittest.mock import patch

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import gsr_kernels
from gsr_kernels.backends import dispatch
from gsr_kernels.optim.fused_step import FusedStep
from python_tests.distributed.matrices import distribute, make_model, matrices, set_gradients, whole

SETTINGS = {"lr": 1e-2, "weight_decay": 0.1, "rho": 0.7, "out_of_span": "keep"}
STATES = [(torch.float64, {}), (torch.bfloat16, {}), (torch.bfloat16, {"master_weights": True})]


def train(model, dtype, options):
    optimizer = gsr_kernels.GSRAdamW(model, **SETTINGS, **options)
    for step in range(4):
        gradients = matrices(100 + step, dtype=dtype)
        if step == 2:
            gradients["tall"][0, 0] = torch.nan
        set_gradients(model, gradients)
        optimizer.step()
    return optimizer


def error_of_move(weights, references, begun):
    """The largest distance of two weights beside the distance that training has moved one of them."""
    rows = [[one.detach().double() for one in row] for row in zip(weights, references, begun)]
    return max(((W - w).norm() / (w - old).norm()).item() for W, w, old in rows)


def gsr_adamw():
    """Errors of moves against one process; and steps and skips of the weight whose gradient was once not finite."""
    mesh = init_device_mesh("cpu", (2,))
    errors, counted = [], []
    for dtype, options in STATES:
        reference = make_model(matrices(0, dtype=dtype))
        train(reference, dtype, options)
        for placement in (Shard(0), Shard(1)):
            model = make_model(matrices(0, dtype=dtype))
            distribute(model, mesh, (placement,))
            optimizer = train(model, dtype, options)
            trained = [[whole(layer.weight) for layer in one.values()] for one in (model, reference)]
            errors.append((str(dtype), error_of_move(*trained, matrices(0, dtype=dtype).values())))
            skipped = optimizer.handle.metrics()["tall.weight"]["skipped_nonfinite"]
            counted.append((optimizer.state[model["tall"].weight]["step"].item(), skipped))
    return errors, counted


def beside_kernels():
    """By placement: the error of two steps of a weight, experts and a plain weight, and how many the kernels moved.

    They take tensors on a CPU too, as on a GPU. The error is against torch's steps of whole weights.
    """
    mesh = init_device_mesh("cpu", (2,))
    shapes = {"weight": (12, 8), "experts": (2, 6, 4), "plain.weight": (9, 5)}
    begun = matrices(0, shapes, torch.float32)
    moved = []
    run = FusedStep.run

    def counted(self, *arguments, **settings):
        moved.append(len(self._fused))
        run(self, *arguments, **settings)

    def trained(place):
        parameters = {name: nn.Parameter(place(W.clone(), name)) for name, W in begun.items()}
        optimizer = gsr_kernels.GSRAdamW(parameters.items(), **SETTINGS)
        for step in range(2):
            for name, G in matrices(100 + step, shapes, torch.float32).items():
                parameters[name].grad = place(G, name)
            optimizer.step()
        return [whole(W) for W in parameters.values()]

    expected, found = trained(lambda tensor, name: tensor), {}
    always = patch.object(dispatch, "has_kernels", lambda device: True)
    interpreted, moving = patch.dict(os.environ, TRITON_INTERPRET="1"), patch.object(FusedStep, "run", counted)
    with interpreted, moving, always:
        for placement in (Replicate(), Shard(0), Shard(1)):
            moved.clear()
            weights = trained(
                lambda W, name, to=placement: W if name == "plain.weight" else distribute_tensor(W, mesh, [to])
            )
            found[str(placement)] = error_of_move(weights, expected, begun.values()), list(moved)
    return found
