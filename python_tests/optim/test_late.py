"""Weights that begin to train after attach(), and bases files that hold some of the weights."""

import copy

import pytest
import torch
from torch import nn

from gsr_kernels import OSF, SpectralBasis, attach, load_bases, save_bases
from python_tests.optim.toy import assert_same_weights, make_model, take_steps


def thaw(model, optimizer):
    model[0].requires_grad_(True)


def add(model, optimizer):
    optimizer.add_param_group({"params": list(model[0].parameters())})


@pytest.mark.parametrize("begin", [thaw, add])
def test_matrices_that_begin_to_train_are_said(begin):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[0].requires_grad_(begin is add)
    held = model[1].parameters() if begin is add else model.parameters()
    optimizer = torch.optim.SGD(held, 0.1)
    handle = attach(model, optimizer, rho=0.5)
    begin(model, optimizer)
    with pytest.warns(UserWarning, match=r"1 matrices train without the method \(0\.weight\)"):
        handle.refresh()
    model(torch.ones(2, 8)).sum().backward()
    with pytest.warns(UserWarning, match="train without the method"):
        optimizer.step()
    assert len(handle.doctor()) == 1


def test_matrices_that_attach_never_met_are_said():
    model = nn.Linear(8, 8)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    handle = attach(model, optimizer, rho=0.5)
    optimizer.add_param_group({"params": list(nn.Linear(4, 8).parameters())})
    with pytest.warns(UserWarning, match=r"1 matrices train without the method \(8x4 in group 1\)"):
        handle.refresh()


def test_a_frozen_embedding_that_is_thawed_is_no_finding():
    model = make_model()
    model[0].requires_grad_(False)
    handle = attach(model, torch.optim.SGD(model.parameters(), 0.1), rho=0.5)
    model[0].requires_grad_(True)
    take_steps(model, handle._optimizer, range(2))
    assert handle.doctor() == []


def test_a_file_of_some_weights_is_completed_and_resumes(tmp_path):
    path = tmp_path / "bases.safetensors"
    model = make_model()
    stranger = SpectralBasis.of(torch.randn(3, 3))
    save_bases(path, {"1.weight": SpectralBasis.of(model[1].weight), "other.weight": stranger}, {"by": "hand"})
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    with pytest.warns(UserWarning, match=r"lacks 2 of the matched weights \(3\.weight, 5\.weight\).*added to it"):
        attach(model, optimizer, rho=0.5, bases=path)
    assert set(load_bases(path)) == {"1.weight", "3.weight", "5.weight", "other.weight"}
    take_steps(model, optimizer, range(3))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    take_steps(model, optimizer, range(3, 6))
    again = make_model()
    again.load_state_dict(saved[0])
    other = torch.optim.AdamW(again.parameters(), 1e-2)
    attach(again, other, rho=0.5, bases=path)
    other.load_state_dict(saved[1])
    take_steps(again, other, range(3, 6))
    assert_same_weights(model, again)


def test_replicas_leave_what_a_file_holds_of_another_shape(tmp_path):
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        for settings in ({}, {"heads": {"1": 2}}):
            model = nn.parallel.DistributedDataParallel(make_model())
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            handle = attach(model, optimizer, rho=0.5, bases=tmp_path / "bases.safetensors", **settings)
            assert bool(handle.state_dict()["bases"]) == (not settings)
        assert load_bases(tmp_path / "bases.safetensors")["1.weight"].head_dim is None
    finally:
        torch.distributed.destroy_process_group()


def test_a_method_that_corrects_weights_is_refused_16_bits():
    model = nn.Linear(8, 8).bfloat16()
    with pytest.raises(ValueError, match=r"OSF corrects weights.*float32 weights under bfloat16 autocast"):
        attach(model, torch.optim.SGD(model.parameters(), 0.1), OSF())
