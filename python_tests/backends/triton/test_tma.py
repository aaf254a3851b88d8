"""First products by TMA: the results of the plan without it, and Triton's allocator left as it was."""

import threading

import pytest
import torch
import triton
from triton.runtime import _allocation, interpreter

from gsr_kernels import SpectralBasis
from gsr_kernels.backends.dispatch import backend_for
from gsr_kernels.backends.triton.plan_cache import plan_class
from python_tests.oracle import diagonal, double, error, two_products

FP16, FP32 = torch.float16, torch.float32
# every form with edges in rows and columns, as vectors of 16 bytes; and several matrices of one weight
CASES = [
    ((72, 72), "drop", FP32, FP16),
    ((136, 72), "drop", FP32, FP32),
    ((72, 136), "drop", FP16, FP16),
    ((72, 40), "keep", FP32, FP16),
    ((2, 24, 40), "drop", FP32, FP16),
]


@pytest.fixture
def descriptors(monkeypatch):
    """The shapes of the matrices that descriptors were made of."""
    made, make = [], interpreter.InterpreterBuilder.create_make_tensor_descriptor

    def noted(self, base, shape, *given):
        made.append(tuple(side.data.item() for side in shape))
        return make(self, base, shape, *given)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_make_tensor_descriptor", noted)
    return made


def draw(shape, gradient, stored):
    U, S, Vh = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    basis = SpectralBasis(U.to(stored).contiguous(), S.float(), Vh.to(stored).contiguous())
    return basis, torch.randn(shape).to(gradient)


def run(backend, basis, G, mode):
    plan, out = plan_class(backend)([basis], [G.dtype], 0.5, [mode]), torch.full(G.shape, torch.nan, dtype=G.dtype)
    plan.run([G], [out])
    return plan.g[0].clone(), out


@pytest.mark.parametrize("shape, mode, gradient, stored", CASES, ids=str)
def test_the_same_step(shape, mode, gradient, stored, descriptors):
    basis, G = draw(shape, gradient, stored)
    g, out = run("tma", basis, G, mode)
    assert {shape[-2:], basis.U.shape[-2:] if shape[-2] > shape[-1] else basis.Vh.shape[-2:]} == set(descriptors)
    expected, same = run("triton", basis, G, mode)
    U, S, Vh, wide = double(basis.U, basis.S, basis.Vh, G)
    truth = diagonal(wide, U, Vh)
    assert error(g, truth) <= 1.1 * error(expected, truth) + 2e-6
    assert (
        error(out, two_products(wide, g.double(), U, S, Vh, 0.5, mode))
        <= 1.1 * error(same, two_products(wide, expected.double(), U, S, Vh, 0.5, mode)) + 2 * torch.finfo(gradient).eps
    )


@pytest.mark.parametrize("shape", [(40, 17), (17, 40)], ids=str)
def test_sizes_off_16_bytes_go_as_ever(shape, descriptors):
    basis, G = draw(shape, FP32, FP16)
    for found, expected in zip(run("tma", basis, G, "drop"), run("triton", basis, G, "drop")):
        assert torch.equal(found, expected)
    assert not descriptors


def test_gradients_off_16_bytes_go_as_ever(descriptors):
    basis, G = draw((72, 40), FP32, FP16)
    plan, right = plan_class("tma")([basis], [FP32], 0.5, ["drop"]), run("triton", basis, G, "drop")[1]
    moved = torch.empty(G.numel() + 1)[1:].view(G.shape).copy_(G)
    narrow = torch.empty(72, 42)[:, :40].copy_(G)
    out = torch.empty_like(G)
    # of one plan: alignment is looked at anew at every step
    for given, by_tma in ((moved, False), (G, True), (narrow, False), (G, True)):
        descriptors.clear()
        plan.run([given], [out.fill_(torch.nan)])
        assert torch.equal(out, right) and bool(descriptors) == by_tma


def test_the_allocator_is_left_as_it_was():
    plan = plan_class("tma")([draw((24, 16), FP32, FP16)[0]], [FP32], 0.5, ["drop"])
    current = getattr(_allocation._allocator, "get", lambda: _allocation._allocator)
    before, found = current(), []

    def launch():
        # as Triton's launcher asks for memory
        found.append(_allocation._allocator.get()(512, 128, 0))

    def fail():
        raise RuntimeError("out of resource")

    thread = threading.Thread(target=plan._apart, args=(launch,))
    thread.start()
    thread.join()
    plan._apart(launch)
    with pytest.raises(RuntimeError, match="out of resource"):
        plan._apart(fail)
    # one piece of memory for all launches, in a thread that knows no allocator too
    assert len(found) == 2 and found[0] is found[1] and found[0].numel() == 512
    assert current() is before

    # another's is in force around, and stays
    mine = lambda size, alignment, stream: None  # noqa: E731
    triton.set_allocator(mine)
    plan._apart(launch)
    assert current() is mine and found[2] is found[0]
    triton.set_allocator(before)


@pytest.mark.parametrize("major, minor", [(8, 0), (10, 0)])
def test_other_gpus_refuse_it_by_name(major, minor, monkeypatch):
    monkeypatch.setattr("gsr_kernels.backends.dispatch.architecture", lambda device: 10 * major + minor)
    with pytest.raises(ValueError, match="backend='tma' needs a GPU of compute capability 9"):
        backend_for("step", torch.device("cuda", 0), FP16, FP16, (64, 64, 64), "drop", "tma")
