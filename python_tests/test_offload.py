import pytest
import torch

from gsr_kernels import SpectralBasis, attach, offload
from gsr_kernels.methods import GSR, OSF, GSRFull
from python_tests.optim.toy import OPTIMIZERS, assert_same_weights, make_model, take_steps


@pytest.mark.parametrize("group", [1, 3000, 2**30])
@pytest.mark.parametrize("method", [GSR(0.7), OSF(0.5), GSRFull(1.0)], ids=["gsr", "osf", "gsr-full"])
def test_bases_in_host_memory_change_nothing(monkeypatch, group, method):
    monkeypatch.setattr(offload, "GROUP", group)
    models = []
    for basis_device in (None, "cpu"):
        model = make_model()
        optimizer = OPTIMIZERS["adamw"](model.parameters())
        handle = attach(model, optimizer, method, basis_device=basis_device, record_every=1)
        take_steps(model, optimizer, range(3))
        handle.refresh()
        take_steps(model, optimizer, range(3, 5))
        assert all("norm_ratio" in record for record in handle.metrics().values())
        models.append(model)
    assert_same_weights(*models)


@pytest.mark.parametrize("group", [1, 500, 10**6])
def test_every_basis_visits_once_in_order_and_one_group_ahead(monkeypatch, group):
    bases = [SpectralBasis.of(torch.randn(d1, 6)) for d1 in (4, 6, 8, 12, 3)]
    log = []
    copies = offload._Copies

    class Logged(copies):
        def __init__(self, bases, devices):
            log.append("sent")
            super().__init__(bases, devices)

    monkeypatch.setattr(offload, "_Copies", Logged)
    seen = []
    for part, present in offload.visits(bases, [torch.device("meta")] * 5, group):
        log.append("used")
        assert len(present) == 1 or sum(basis.nbytes for basis in present) <= group
        assert all(basis.U.is_meta and basis.shape == bases[part][i].shape for i, basis in enumerate(present))
        seen += range(5)[part]
    assert seen == list(range(5))
    assert all(log[: place + 1].count("sent") > log[:place].count("used") for place in range(len(log)))
    assert log.count("sent") == log.count("used") == {1: 5, 500: 4, 10**6: 1}[group]
    assert log[:3] == (["sent", "sent", "used"] if group < 10**6 else ["sent", "used"])


def test_what_is_there_already_stays_together_as_it_is():
    bases = [SpectralBasis.of(torch.randn(8, 6)) for _ in range(5)]
    ((part, present),) = offload.visits(bases, [torch.device("cpu")] * 5, group=1)
    assert part == slice(0, 5) and all(one is other for one, other in zip(present, bases))


def test_nothing_to_visit():
    assert [present for _, present in offload.visits([], [])] == [[]]


def test_bad_basis_device():
    model = make_model()
    with pytest.raises(ValueError, match="basis_device must be None or 'cpu', got 'disk'"):
        attach(model, OPTIMIZERS["sgd"](model.parameters()), rho=0.5, basis_device="disk")
