"""What a method of one's own may get wrong, each by the message that says so."""

from dataclasses import dataclass

import pytest
import torch

import gsr_kernels
from gsr_kernels.methods import Method
from gsr_kernels.methods.on_model import BoundMethod


def step(method, size=4):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(size, size, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = gsr_kernels.attach(model, optimizer, method)
    before = model[0].weight.clone()
    model[0].weight.grad = torch.ones(size, size)
    try:
        optimizer.step()
    except ValueError:
        # what is met before the step changes nothing
        assert "constrain" in vars(type(method)) or torch.equal(before, model[0].weight)
        raise
    return handle, model[0].weight - before


def test_a_misspelt_hook_is_named_when_the_class_is_made():
    with pytest.raises(TypeError, match=r"Mine.gradiant is never called: is it gradient\(\)\? The hooks are decompose"):

        class Mine(Method):
            def gradiant(self, G, W, basis, state):
                return G

    with pytest.raises(TypeError, match=r"Bound.start_tasks is never called: is it start_task\(\)"):

        class Bound(BoundMethod):
            def start_tasks(self):
                pass


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (lambda G: None, r"must return a float tensor \(4, 4\), as G, got None"),
        (lambda G: G[:2], r"got a torch.float32 \(2, 4\)"),
        (lambda G: G.long(), r"got a torch.int64 \(4, 4\)"),
        (lambda G: G / (G - G), "made NaN or Inf of a finite gradient"),
    ],
)
def test_what_is_no_gradient_is_refused_and_nothing_changes(found, message):
    class Mine(Method):
        def gradient(self, G, W, basis, state):
            return found(G)

    with pytest.raises(ValueError, match=rf"Mine.gradient\(\) .*{message}"):
        step(Mine())


def test_what_is_no_state_or_no_constraint_is_refused():
    class Stateless(Method):
        def prepare(self, name, W, basis):
            return None

    class Returning(Method):
        def constrain(self, W, basis, state):
            return W / 2

    with pytest.raises(ValueError, match=r"Stateless.prepare\(\) must return a dict of tensors, got None"):
        step(Stateless())
    with pytest.raises(ValueError, match=r"Returning.constrain\(\) must change W in place"):
        step(Returning())


def test_without_a_basis_nothing_is_decomposed(monkeypatch):
    @dataclass(frozen=True)
    class Half(Method):
        uses_basis = False

        def gradient(self, G, W, basis, state):
            return G / 2

    monkeypatch.setattr(torch.linalg, "svd", None)
    monkeypatch.setattr(torch.linalg, "eigh", None)
    handle, moved = step(Half())
    torch.testing.assert_close(moved, torch.full((4, 4), -0.05))
    assert handle.weights[0].basis.rank == 1
