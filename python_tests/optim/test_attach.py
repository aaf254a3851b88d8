import copy
import warnings

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from gsr_kernels import GSR, SpectralBasis, attach, rescale_gradient
from gsr_kernels.optim.handle import Handle, attached
from gsr_kernels.optim.metrics import measure_after
from python_tests.optim.toy import OPTIMIZERS, assert_same_weights, loss_of, make_model


def train(optimizer_name, with_closure=False, steps=5, attached_as=None, model=None):
    model = model or make_model()
    optimizer = OPTIMIZERS[optimizer_name](list(model.parameters()))
    handle = attached_as(model, optimizer) if attached_as else None

    for step in range(steps):

        def closure(step=step):
            optimizer.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            return loss

        if with_closure:
            assert optimizer.step(closure) is not None
        else:
            closure()
            optimizer.step()
    return model, handle


def rho(value, **settings):
    return lambda model, optimizer: attach(model, optimizer, rho=value, **settings)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_closure_changes_nothing(name):
    assert_same_weights(train(name, attached_as=rho(0.7))[0], train(name, True, attached_as=rho(0.7))[0])


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("with_closure", [False, True])
def test_rho_zero_with_keep_is_the_bare_optimizer_bitwise(name, with_closure):
    gsr = train(name, with_closure, attached_as=rho(0.0, out_of_span="keep", record_every=1))[0]
    assert_same_weights(gsr, train(name)[0])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_optimizer_is_given_the_rescaled_gradients(name):
    model, by_hand = make_model(), make_model()
    optimizers = [OPTIMIZERS[name](list(m.parameters())) for m in (model, by_hand)]
    attach(model, optimizers[0], rho=0.7)
    linear = [m for m in by_hand if isinstance(m, nn.Linear)]
    bases = [SpectralBasis.of(m.weight) for m in linear]
    for step in range(3):
        for m, optimizer in zip((model, by_hand), optimizers):
            optimizer.zero_grad()
            loss_of(m, step).backward()
        for m, basis in zip(linear, bases):
            rescale_gradient(m.weight.grad, basis, 0.7, out=m.weight.grad)
        for optimizer in optimizers:
            optimizer.step()
    assert_same_weights(model, by_hand)


def test_closure_as_keyword():
    model = make_model()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    handle = attach(model, optimizer, rho=0.7)
    optimizer.step(closure=lambda: loss_of(model, 0).backward())
    assert all(weight.steps == 1 for weight in handle.weights)


def test_defaults():
    model = make_model()
    for rank, expected in [(None, "drop"), (4, "keep"), (0.5, "keep"), ({"1": 4}, "keep")]:
        handle = attach(model, torch.optim.SGD(model.parameters()), rho=0.5, rank=rank)
        assert handle.methods == [GSR(rho=0.5, out_of_span=expected)]
    handle = attach(model, torch.optim.SGD(model.parameters()), GSR(0.5, out_of_span="keep"))
    assert handle.methods[0].out_of_span == "keep"


def test_remove_gives_the_bare_optimizer_back():
    model = make_model()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    first = attach(model, optimizer, rho=1.0)
    first.remove()
    for step in range(3):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
    assert_same_weights(model, train("adamw", steps=3)[0])
    second = attach(model, optimizer, rho=1.0)
    first.remove()
    assert Handle.of(optimizer) is second


def test_refresh_decomposes_the_weights_as_they_are():
    model, handle = train("adamw", attached_as=rho(0.5))
    optimizer = handle._optimizer
    moments = copy.deepcopy(optimizer.state_dict()["state"])
    old = {weight.name: weight.basis for weight in handle.weights}
    handle.refresh()
    for weight in handle.weights:
        fresh = SpectralBasis.of(model.get_parameter(weight.name))
        assert torch.equal(weight.basis.S, fresh.S) and not torch.equal(weight.basis.S, old[weight.name].S)
    kept = optimizer.state_dict()["state"]
    assert all(torch.equal(kept[i]["exp_avg"], moments[i]["exp_avg"]) for i in moments)
    handle.refresh(reset_moments=True)
    assert not optimizer.state


def test_refresh_of_a_broken_weight_changes_nothing():
    model, handle = train("adamw", attached_as=rho(0.5))
    old = [weight.basis for weight in handle.weights]
    with torch.no_grad():
        model[3].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"3\.weight: weight holds NaN"):
        handle.refresh(reset_moments=True)
    assert [weight.basis for weight in handle.weights] == old and handle._optimizer.state


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_non_finite_gradient_is_left_and_counted(bad):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    handle = attach(model, optimizer, rho=0.7)
    loss_of(model, 0).backward()
    model[3].weight.grad[2, 5] = bad
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    optimizer.step()
    assert torch.equal(model[3].weight.grad.nan_to_num(9.0), before["3.weight"].nan_to_num(9.0))
    assert not torch.equal(model[1].weight.grad, before["1.weight"])
    skipped = {name: record["skipped_nonfinite"] for name, record in handle.metrics().items()}
    assert skipped == {"1.weight": 0, "3.weight": 1, "5.weight": 0}


def test_non_finite_as_an_error_changes_no_weight():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    attach(model, optimizer, rho=0.7, nonfinite="error")
    loss_of(model, 0).backward()
    model[3].weight.grad[2, 5] = torch.nan
    with pytest.raises(FloatingPointError, match=r"3\.weight"):
        optimizer.step()
    assert_same_weights(model, make_model())


def test_metrics():
    model = make_model()
    with torch.no_grad():
        model[5].weight[:, 0] = 0
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    handle = attach(model, optimizer, rho=1.0, record_every=2)
    for step in range(2):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        G = model[1].weight.grad.clone()
        optimizer.step()
        if step == 0:
            basis, recorded, after = handle.weights[0].basis, G, model[1].weight.grad.clone()
    record = handle.metrics()["1.weight"]
    N = basis.U.mT @ recorded @ basis.Vh.mT
    energy = recorded.square().sum()
    assert record["outside_span"] == pytest.approx(float(1 - N.square().sum() / energy), rel=1e-4)
    assert record["on_diagonal"] == pytest.approx(float(N.diagonal().square().sum() / energy), rel=1e-4)
    assert record["norm_ratio"] == pytest.approx(float(after.norm() / recorded.norm()), rel=1e-5)
    assert record["positive"] == int((N.diagonal() > 0).sum())
    assert record["positive"] + record["negative"] == 12
    assert handle.metrics()["5.weight"]["inactive_directions"] == 1
    assert attach_metrics_without_recording() == {"skipped_nonfinite", "inactive_directions"}


def attach_metrics_without_recording():
    return set(train("sgd", attached_as=rho(0.5))[1].metrics()["1.weight"])


def test_multihead_attention_and_experts_are_batched():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2)
            self.experts = nn.Parameter(torch.randn(3, 8, 4))

    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    handle = attach(model, optimizer, rho=1.0)
    shapes = {weight.name: weight.basis.shape for weight in handle.weights}
    assert shapes["attention.in_proj_weight"] == (3, 8, 8) and shapes["experts"] == (3, 8, 4)
    G = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    for name, p in model.named_parameters():
        p.grad = G[name].clone()
    optimizer.step()
    q, basis = model.attention.in_proj_weight[:8], SpectralBasis.of(model.attention.in_proj_weight[:8])
    expected = rescale_gradient(G["attention.in_proj_weight"][:8], basis, 1.0)
    assert torch.allclose(model.attention.in_proj_weight.grad[: len(q)], expected, atol=1e-5)


def test_report_and_coverage(capsys):
    model = make_model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        handle = attach(model, torch.optim.SGD(model.parameters()), rho=0.5)
    total = sum(p.numel() for p in model.parameters())
    assert f"{(12 * 24 * 2 + 144) / total:.1%} of the trainable" in capsys.readouterr().err
    lines = str(handle).splitlines()
    assert any("0.weight" in line and "skipped: embedding" in line for line in lines)
    assert any("1.weight" in line and "rank 12 of 12" in line for line in lines)
    with pytest.warns(UserWarning, match=r"only \d+\.\d% of the trainable"):
        attach(model, torch.optim.SGD(model.parameters()), rho=0.5, targets="5")


def test_doctor():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    handle = attach(model, optimizer, rho=0.5)
    with pytest.warns(UserWarning, match="no step of the optimizer"):
        assert handle.doctor()
    loss_of(model, 0).backward()
    model[3].weight.grad = None
    with pytest.warns(UserWarning, match=r"1 of 3 matched weights have had no gradient.*3\.weight"):
        optimizer.step()
    loss_of(model, 0).backward()
    optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert handle.doctor() == []


def test_the_model_may_move_and_the_groups_may_grow():
    model = make_model()
    optimizer = torch.optim.SGD(list(model[1:].parameters()), 0.1)
    attach(model, optimizer, rho=0.5)
    optimizer.add_param_group({"params": list(model[0].parameters())})
    loss_of(model, 0).backward()
    optimizer.step()
    optimizer.param_groups[0]["params"].reverse()
    with pytest.raises(RuntimeError, match="parameter groups no longer hold"):
        optimizer.step()


BAD = [
    ({}, ValueError, "exactly one of method and rho"),
    ({"rho": 0.5, "method": GSR(0.5)}, ValueError, "exactly one of method and rho"),
    ({"method": 0.5}, TypeError, "method"),
    ({"rho": 2.0}, ValueError, "rho"),
    ({"rho": 0.5, "rank": 13}, ValueError, "rank"),
    ({"rho": 0.5, "targets": "nothing"}, ValueError, "targets"),
    ({"rho": 0.5, "out_of_span": "maybe"}, ValueError, "out_of_span"),
    ({"rho": 0.5, "bases": "/no/such/file"}, FileNotFoundError, "bases"),
    ({"rho": 0.5, "nonfinite": "zero"}, ValueError, "nonfinite"),
    ({"rho": 0.5, "record_every": -1}, ValueError, "record_every"),
    ({"rho": 0.5, "record_every": 1.5}, ValueError, "record_every"),
    ({"rho": "x"}, ValueError, "rho"),
]


@pytest.mark.parametrize(("arguments", "error", "named"), BAD, ids=[str(arguments) for arguments, _, _ in BAD])
def test_bad_arguments_leave_the_optimizer_as_it_was(arguments, error, named):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters())
    with pytest.raises(error, match=named):
        attach(model, optimizer, **arguments)
    assert id(optimizer) not in attached and not optimizer._optimizer_step_pre_hooks


def test_bad_optimizers_and_weights():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters())
    attach(model, optimizer, rho=0.5)
    with pytest.raises(ValueError, match="has a handle already"):
        attach(model, optimizer, rho=0.5)
    with pytest.raises(ValueError, match="none of the model's parameters"):
        attach(model, torch.optim.SGD(make_model().parameters()), rho=0.5)
    with pytest.raises(TypeError, match="LBFGS"):
        attach(model, torch.optim.LBFGS(model.parameters()), rho=0.5)
    with pytest.raises(TypeError, match="optimizer must be"):
        attach(model, model, rho=0.5)
    with torch.no_grad():
        model[3].weight[1, 1] = torch.inf
    with pytest.raises(ValueError, match=r"3\.weight: weight holds NaN or Inf"):
        attach(model, torch.optim.SGD(model.parameters()), rho=0.5)


def test_sparse_gradients_are_refused():
    embedding = nn.Embedding(6, 4, sparse=True)
    optimizer = torch.optim.SGD(embedding.parameters(), 0.1)
    attach(embedding, optimizer, rho=0.5, targets="weight")
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match="weight is sparse"):
        optimizer.step()


def test_a_record_widens_a_part_of_a_gradient_at_a_time():
    G = 1e25 * torch.randn(1024, 300)
    energy = G.double().square().sum()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        record = measure_after(G, {"energy": energy})
    assert abs(record["norm_ratio"].item() - 1) < 1e-12
    # in float64 it would be twice as large as it is
    assert max(event.cpu_memory_usage for event in seen.events()) < G.nbytes
