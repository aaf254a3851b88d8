"""A model small enough to train in a test, its data and the optimizers that it is trained with."""

import torch
from torch import nn


def make_model(dtype=torch.float32):
    torch.manual_seed(7)
    return nn.Sequential(
        nn.Embedding(20, 12), nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 12), nn.Tanh(), nn.Linear(12, 12, bias=False)
    ).to(dtype)


OPTIMIZERS = {
    "adamw": lambda ps: torch.optim.AdamW(ps, 1e-2),
    "adamw_fused": lambda ps: torch.optim.AdamW(ps, 1e-2, fused=True),
    "sgd": lambda ps: torch.optim.SGD(ps, 0.1, momentum=0.9),
    "muon": lambda ps: torch.optim.Muon([p for p in ps if p.ndim == 2], 1e-2),
}


def loss_of(model, step):
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(20, (16,), generator=generator)
    output = model(tokens)
    return (output - torch.randn(16, 12, generator=generator).to(output.dtype)).square().mean()


def take_steps(model, optimizer, steps, scheduler=None):
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def assert_same_weights(left, right):
    for (name, a), b in zip(left.named_parameters(), right.parameters()):
        assert torch.equal(a, b), name
