import copy
import dataclasses
import gc
import weakref

import pytest
import torch

from gsr_kernels import SpectralBasis, attach, offload
from gsr_kernels.backends import dispatch
from gsr_kernels.backends.torch.rescale_gradient import rescale_gradient
from gsr_kernels.backends.triton import plan_cache as steps
from gsr_kernels.backends.triton.plan_cache import Steps
from gsr_kernels.methods import GSR, gsr
from python_tests.optim.toy import OPTIMIZERS, make_model, take_steps
from python_tests.oracle import error


@pytest.fixture
def plans(monkeypatch):
    """Every plan that is built; GSR takes its steps by plan, as on a GPU."""
    built = []

    class Counted(steps.Plan):
        def __init__(self, *arguments, **keywords):
            built.append(weakref.ref(self))
            super().__init__(*arguments, **keywords)

    monkeypatch.setattr(steps, "Plan", Counted)
    monkeypatch.setattr(dispatch, "has_kernels", lambda device: True)
    return built


def test_a_model_with_weights_that_no_plan_takes(plans):
    bases = [
        SpectralBasis.of(torch.randn(24, 24)),
        SpectralBasis.of(torch.randn(24, 40), rank=5),
        SpectralBasis.of(torch.randn(2, 16, 24)),
    ]
    gradients = [torch.randn(basis.shape) for basis in bases]
    gradients[2][1, 0, 0] = torch.nan
    expected = [torch.empty_like(G) for G in gradients]
    for G, basis, out in zip(gradients, bases, expected):
        rescale_gradient(G, basis.U, basis.S, basis.Vh, 0.5, "drop", out)
    finite = GSR(0.5, "drop").transform([(G, G, basis, {}) for G, basis in zip(gradients, bases)])
    assert [flag.tolist() for flag in finite] == [True, True, [True, False]]
    assert len(plans) == 1
    for G, right in zip([*gradients[:2], gradients[2][0]], [*expected[:2], expected[2][0]]):
        assert error(G, right) < 1e-6
    assert torch.equal(gradients[2][1].isnan(), expected[2][1].isnan())


@pytest.mark.parametrize("basis_device", [None, "cpu"])
def test_the_steps_of_a_model_share_a_plan(plans, monkeypatch, basis_device):
    models = []
    for planned in (True, False):
        monkeypatch.setattr(dispatch, "has_kernels", lambda device, planned=planned: planned)
        model = make_model()
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        handle = attach(model, optimizer, rho=0.7, basis_device=basis_device)
        take_steps(model, optimizer, range(2))
        # bases taken anew are of the same kinds
        handle.refresh()
        take_steps(model, optimizer, range(2, 4))
        models.append(model)
        if planned:
            assert len(plans) == 1
    for found, right in zip(*(model.parameters() for model in models)):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)


def test_weights_without_a_gradient_and_single_ones_evict_nothing(plans):
    bases = [SpectralBasis.of(torch.randn(shape)) for shape in ((8, 8), (8, 12), (12, 8))]
    method = GSR(0.5)
    for chosen in ([0, 1, 2], [0, 1], [2], [0, 1, 2], [0, 1], [2]):
        gradients = [torch.randn(bases[i].shape) for i in chosen]
        assert all(method.transform([(G, G, bases[i], {}) for G, i in zip(gradients, chosen)]))
    assert len(plans) == 3


def test_few_plans_are_kept_and_those_of_graphs_among_them(plans):
    run = Steps(0.5, "drop")
    bases = [SpectralBasis.of(torch.randn(4, 4 + i)) for i in range(steps.KEPT + 3)]
    for i, basis in enumerate(bases):
        G = torch.randn(basis.shape)
        run.run([G], [basis])
        if not i:
            plans[0]()._addresses.frozen = True
            run.run([G], [basis])
    gc.collect()
    alive = [plan() is not None for plan in plans]
    assert alive == [True] + [False] * 2 + [True] * steps.KEPT
    # the graph has its plan for itself: an eager step, whose gradients lie elsewhere, gets another
    run.run([torch.randn(bases[0].shape)], [bases[0]])
    assert len(plans) == steps.KEPT + 4


def test_a_plan_that_could_not_be_built_is_built_at_the_next_step(monkeypatch):
    run, basis = Steps(0.5, "drop"), SpectralBasis.of(torch.randn(6, 6))
    with monkeypatch.context() as patched:
        patched.setattr(steps, "Plan", lambda *arguments, **keywords: (_ for _ in ()).throw(MemoryError("once")))
        with pytest.raises(MemoryError, match="once"):
            run.run([torch.randn(6, 6)], [basis])
    assert run.run([torch.randn(6, 6)], [basis])[0].all()


def test_a_plan_goes_with_its_method_and_holds_no_basis(plans):
    method, basis = GSR(0.5), SpectralBasis.of(torch.randn(6, 6))
    G = torch.randn(6, 6)
    method.transform([(G, G, basis, {})])
    assert dataclasses.asdict(method) == {"rho": 0.5, "out_of_span": None}
    assert copy.deepcopy(method) == method and copy.deepcopy(method) not in gsr._steps
    left = weakref.ref(basis)
    del basis
    gc.collect()
    assert left() is None and plans[0]() is not None
    del method
    gc.collect()
    assert plans[0]() is None


def test_groups_from_host_memory_have_a_plan_each(plans, monkeypatch):
    monkeypatch.setattr(offload, "_groups", lambda bases, devices, most: [slice(i, i + 1) for i in range(len(bases))])
    model = make_model()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    handle = attach(model, optimizer, rho=0.7, basis_device="cpu")
    take_steps(model, optimizer, range(3))
    assert 1 <= len(plans) <= len(handle.weights)
