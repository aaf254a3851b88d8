import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from gsr_kernels import attach
from gsr_kernels.methods import EWC
from gsr_kernels.methods.on_model import mean_over_batches
from python_tests.oracle import error


def make_model():
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def loss(model, batch):
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)


def rows(count, seed):
    generator = torch.Generator().manual_seed(seed)
    draw = {"generator": generator, "dtype": torch.float64}
    return [(torch.randn(1, 5, **draw), torch.randint(3, (1,), generator=generator)) for _ in range(count)]


def literal(model, tasks, lam):
    """The penalty with every task's own F and θ*, by autograd."""
    penalty = sum(
        (fisher * (parameter - anchor).square()).sum()
        for fishers, anchors in tasks
        for parameter, fisher, anchor in zip(model.parameters(), fishers, anchors)
    )
    return torch.autograd.grad(lam / 2 * penalty, list(model.parameters()))


def test_the_pull_is_the_gradient_of_the_penalties_of_all_tasks():
    model, tasks = make_model(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    handle = attach(model, optimizer, EWC(lam=3.0))
    for seed in range(3):
        batches = rows(6, seed)
        squares = [
            [g.square() for g in torch.autograd.grad(loss(model, batch), list(model.parameters()))] for batch in batches
        ]
        fishers = [torch.stack(one).mean(0) for one in zip(*squares)]
        tasks.append((fishers, [parameter.detach().clone() for parameter in model.parameters()]))
        handle.finish_task(batches, loss)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))

    before = [parameter.detach().clone() for parameter in model.parameters()]
    truth = literal(model, tasks, 3.0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for old, parameter, pull in zip(before, model.parameters(), truth):
        assert error(old - parameter.detach(), pull) < 1e-10


def test_nothing_is_pulled_before_the_first_task_or_after_removal():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    handle = attach(model, optimizer, EWC(lam=1.0))
    start = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    handle.finish_task(rows(2, 0), loss)
    handle.remove()
    with torch.no_grad():
        model[0].weight.add_(1)
    optimizer.step()
    assert torch.equal(model[0].weight, start[0] + 1)


def test_it_holds_what_a_task_needs():
    def forgotten(lam):
        torch.manual_seed(0)
        model = make_model()
        ewc = EWC(lam)
        old = rows(32, 0)
        for batches in (old, rows(32, 1)):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
            handle = attach(model, optimizer, ewc)
            for batch in 10 * batches:
                optimizer.zero_grad()
                loss(model, batch).backward()
                optimizer.step()
            handle.remove()
            handle.finish_task(batches, loss)
        return sum(loss(model, batch).item() for batch in old)

    assert forgotten(10.0) < forgotten(0.0)


def test_refuses_bad_input_and_keeps_what_it_had():
    model = make_model()
    with pytest.raises(ValueError, match="lam"):
        EWC(lam=-1.0)
    with pytest.raises(ValueError, match="no parameter that requires gradients"):
        EWC(lam=1.0).bind(nn.Linear(2, 2).requires_grad_(False))
    ewc = EWC(lam=1.0)
    optimizer = torch.optim.SGD(model.parameters())
    handle = attach(model, optimizer, ewc)
    with pytest.raises(ValueError, match="needs batches of the task"):
        handle.finish_task()
    with pytest.raises(ValueError, match="batches is empty"):
        handle.finish_task([], loss)
    with pytest.raises(ValueError, match=r"the gradient of 0.weight holds NaN"):
        handle.finish_task([(torch.full((1, 5), torch.nan, dtype=torch.float64), torch.tensor([0]))], loss)
    assert not ewc.fisher and not ewc.anchors


def test_a_parameter_without_a_gradient_under_reentrant_checkpointing_is_named():
    model = make_model()
    handle = attach(model, torch.optim.SGD(model.parameters()), EWC(lam=1.0))

    def checkpointed(model, batch):
        hidden = checkpoint(model[:2], batch[0].clone().requires_grad_(), use_reentrant=True)
        return nn.functional.cross_entropy(model[2](hidden), batch[1])

    with pytest.raises(ValueError, match=r"0\.weight gets no gradient: .* pass use_reentrant=False"):
        handle.finish_task(rows(2, 0), checkpointed)


def test_a_batch_is_not_held_beside_the_next():
    layers = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    seen, alive = [], []

    def loss(model, batch):
        alive.append(sum(one() is not None for one in seen))
        return model(batch).square().mean()

    def squared(gradient):
        seen.append(weakref.ref(gradient))
        return gradient.square()

    mean_over_batches(layers, dict(layers.named_parameters()), torch.randn(3, 4, 8), loss, squared)
    assert len(seen) == 12 and max(alive) <= 1
