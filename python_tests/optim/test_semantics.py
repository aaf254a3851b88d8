"""What a user expects of gradients, whatever else the training loop does with them."""

import os
import random
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint_sequential

from gsr_kernels import GSRAdamW, Handle, SpectralBasis, attach, rescale_gradient
from gsr_kernels.methods import GSR, OSF, SR
from python_tests.optim.toy import OPTIMIZERS, assert_same_weights, loss_of, make_model, take_steps

# how many gradients are broken; INJECTIONS=10000 before a release
INJECTIONS = int(os.environ.get("INJECTIONS", "300"))


def begin(optimizer="adamw", model=None, **settings):
    model = model or make_model()
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    return model, optimizer, attach(model, optimizer, **(settings or {"rho": 0.7}))


def test_accumulated_gradients_are_transformed_once():
    whole, whole_optimizer, _ = begin("sgd")
    parts, parts_optimizer, handle = begin("sgd")
    for step in range(3):
        whole_optimizer.zero_grad()
        sum(loss_of(whole, 4 * step + part) for part in range(4)).backward()
        whole_optimizer.step()
        parts_optimizer.zero_grad()
        for part in range(4):
            loss_of(parts, 4 * step + part).backward()
        parts_optimizer.step()
    assert handle.state_dict()["steps"] == 3
    for a, b in zip(whole.parameters(), parts.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("out_of_span", ["keep", "drop"])
def test_clipping_before_and_after(out_of_span):
    """Equal with keep, which keeps the norm; after drop there is less to clip, so that clipping first clips more."""
    model = make_model()
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    bases = {name: SpectralBasis.of(m.weight) for name, m in linear.items()}

    def transform():
        for name, m in linear.items():
            rescale_gradient(m.weight.grad, bases[name], 0.7, out_of_span, out=m.weight.grad)

    def clip():
        nn.utils.clip_grad_norm_(model.parameters(), 0.01)

    results = []
    for order in ((clip, transform), (transform, clip)):
        model.zero_grad()
        loss_of(model, 0).backward()
        for one in order:
            one()
        results.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    if out_of_span == "keep":
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-7)
    else:
        assert results[0].norm() < 0.99 * results[1].norm()
        assert torch.cosine_similarity(*results, dim=0) > 1 - 1e-6


@pytest.mark.parametrize("name", ["adamw", "adamw_fused", "sgd"])
@pytest.mark.parametrize("method", [GSR(0.7), [SR(1.0), GSR(0.7)], OSF(0.5)], ids=["gsr", "sr-gsr", "osf"])
def test_a_gradient_scaler_changes_nothing(name, method):
    scaled, optimizer, handle = begin(name, method=method)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=10**6)
    for step in range(4):
        optimizer.zero_grad()
        scaler.scale(loss_of(scaled, step)).backward()
        scaler.step(optimizer)
        scaler.update()
    plain, optimizer, _ = begin(name, method=method)
    take_steps(plain, optimizer, range(4))
    assert handle.state_dict()["steps"] == 4
    assert_same_weights(scaled, plain)


@pytest.mark.parametrize("name", ["adamw", "adamw_fused"])
@pytest.mark.parametrize("method", [GSR(0.7), OSF(0.5)], ids=["gsr", "osf"])
def test_an_overflow_step_changes_no_weight(name, method):
    model, optimizer, handle = begin(name, method=method)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for overflow in (False, True, False):
        before = [p.clone() for p in model.parameters()]
        optimizer.zero_grad()
        scaler.scale(loss_of(model, 0)).backward()
        if overflow:
            model[3].weight.grad[2, 5] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        same = [torch.equal(p, old) for p, old in zip(model.parameters(), before)]
        assert all(same) if overflow else not any(same)
    assert scaler.get_scale() == 512
    # the fused optimizer is called in spite of the overflow, the other is not
    skipped = {name: record["skipped_nonfinite"] for name, record in handle.metrics().items()}
    assert skipped == {"1.weight": 0, "3.weight": int(name == "adamw_fused"), "5.weight": 0}


class PlainSGD(torch.optim.Optimizer):
    """Takes gradients of any dtype, as optimizers with a master copy do."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p -= (group["lr"] * p.grad).to(p.dtype)


@pytest.mark.parametrize(("weights", "gradients"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_gradients_may_have_a_dtype_of_their_own(weights, gradients):
    weights, gradients = getattr(torch, weights), getattr(torch, gradients)
    layer = nn.Linear(12, 24, bias=False, dtype=weights)
    layer.weight.grad_dtype = None
    layer.weight.grad = torch.randn(24, 12, dtype=gradients)
    expected = rescale_gradient(layer.weight.grad, SpectralBasis.of(layer.weight), 0.7)
    optimizer = PlainSGD(layer.parameters())
    attach(layer, optimizer, rho=0.7)
    optimizer.step()
    assert layer.weight.grad.dtype == gradients and torch.equal(layer.weight.grad, expected)


def test_activation_checkpointing_changes_nothing():
    class Recomputed(nn.Sequential):
        def forward(self, tokens):
            return checkpoint_sequential(self, 3, tokens, use_reentrant=False)

    recomputed = Recomputed(*make_model())
    _, optimizer, _ = begin(model=recomputed)
    take_steps(recomputed, optimizer, range(3))
    plain, optimizer, _ = begin()
    take_steps(plain, optimizer, range(3))
    assert_same_weights(recomputed, plain)


@pytest.mark.parametrize("attach_to_compiled", [False, True])
def test_a_compiled_model(attach_to_compiled):
    model = make_model()
    compiled = torch.compile(model, backend="aot_eager")
    _, optimizer, handle = begin(model=compiled if attach_to_compiled else model)
    take_steps(compiled, optimizer, range(3))
    plain, optimizer, reference = begin()
    take_steps(plain, optimizer, range(3))
    assert [weight.name for weight in handle.weights] == [weight.name for weight in reference.weights]
    for a, b in zip(model.parameters(), plain.parameters()):
        torch.testing.assert_close(a, b)


def test_rho_and_rank_by_weight():
    model = make_model()
    groups = [{"params": model[:2].parameters(), "lr": 0.1}, {"params": model[2:].parameters(), "lr": 0.0}]
    optimizer = torch.optim.SGD(groups)
    handle = attach(model, optimizer, rho={".*": 0.2, "3": 0.9}, rank={"5": 4})
    loss_of(model, 0).backward()
    bases = {weight.name: weight.basis for weight in handle.weights}
    rho = {"1.weight": 0.2, "3.weight": 0.9, "5.weight": 0.2}
    expected = {
        name: rescale_gradient(model.get_parameter(name).grad, basis, rho[name], "keep")
        for name, basis in bases.items()
    }
    optimizer.step()
    assert [basis.rank for basis in bases.values()] == [12, 12, 4]
    for name, gradient in expected.items():
        assert torch.equal(model.get_parameter(name).grad, gradient), name


@pytest.mark.parametrize(
    ("rho", "message"), [({"7": 0.5}, "'7' matches none"), ({"3": 0.5}, r"no pattern matches 1\.weight, 5\.weight")]
)
def test_rho_that_does_not_match(rho, message):
    with pytest.raises(ValueError, match=message):
        begin(rho=rho)


def test_refresh_within_a_task_is_spread_over_the_steps():
    model, optimizer, handle = begin()
    handle.refresh_every = 5
    when = {weight.name: [] for weight in handle.weights}
    for step in range(20):
        old = {weight.name: weight.basis for weight in handle.weights}
        take_steps(model, optimizer, [step])
        for weight in handle.weights:
            if weight.basis is not old[weight.name]:
                when[weight.name].append(step)
                fresh = SpectralBasis.of(model.get_parameter(weight.name))
                assert torch.equal(weight.basis.U, fresh.U)
    steps = [step for each in when.values() for step in each]
    assert len(set(steps)) == len(steps) == 12
    assert all(later - earlier == 5 for each in when.values() for earlier, later in pairwise(each))
    handle.refresh_every = 0
    old = [weight.basis for weight in handle.weights]
    take_steps(model, optimizer, range(20, 26))
    assert [weight.basis for weight in handle.weights] == old
    with pytest.raises(ValueError, match="every"):
        handle.refresh_every = -1


def test_refresh_within_a_task_resumes(tmp_path):
    model, optimizer, handle = begin()
    handle.refresh_every = 2
    take_steps(model, optimizer, range(5))
    handle.save_bases(tmp_path / "bases.safetensors")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "checkpoint.pt")
    take_steps(model, optimizer, range(5, 10))
    saved = torch.load(tmp_path / "checkpoint.pt")
    resumed = make_model()
    resumed.load_state_dict(saved["model"])
    resumed, optimizer, _ = begin(model=resumed, rho=0.7, bases=tmp_path / "bases.safetensors")
    optimizer.load_state_dict(saved["optimizer"])
    take_steps(resumed, optimizer, range(5, 10))
    assert_same_weights(resumed, model)


@pytest.mark.parametrize("settings", [{"rho": 0.7}, {"rho": 0.7, "rank": 5}], ids=["drop", "keep"])
def test_one_broken_element_anywhere_leaves_its_gradient_and_is_counted(settings):
    chance = random.Random(0)
    model, _, handle = begin("sgd", **settings)
    counts = {weight.name: 0 for weight in handle.weights}
    for step in range(INJECTIONS // 2):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter) * 10.0 ** chance.randint(-20, 15)
        name = chance.choice(list(counts))
        G = model.get_parameter(name).grad
        bad = chance.choice([torch.nan, torch.inf, -torch.inf])
        G.view(-1)[chance.randrange(G.numel())] = bad
        came = {other: model.get_parameter(other).grad.clone() for other in counts}
        before = [parameter.clone() for parameter in model.parameters()]
        # what comes before the step alone: the step itself would spread the broken element
        handle._transform()
        counts[name] += 1
        for other, gradient in came.items():
            now = model.get_parameter(other).grad
            assert torch.equal(now.view(torch.int32), gradient.view(torch.int32)) == (other == name), (step, other)
        assert all(torch.equal(parameter, old) for parameter, old in zip(model.parameters(), before))
    assert {name: record["skipped_nonfinite"] for name, record in handle.metrics().items()} == counts


COMPILED = {
    # fused: traced, torch's others round otherwise by themselves (AdamW, and SGD of torch 2.10)
    "attach, AdamW": lambda model: (
        attach(model, torch.optim.AdamW(model.parameters(), 1e-2, fused=True), rho=0.5)._optimizer
    ),
    "attach, SGD": lambda model: (
        attach(model, torch.optim.SGD(model.parameters(), 1e-1, fused=True), rho=0.5)._optimizer
    ),
    "GSRAdamW": lambda model: GSRAdamW(model, 1e-2, rho=0.5),
    "GSRAdamW, masters": lambda model: GSRAdamW(model.bfloat16(), 1e-2, rho=0.5, master_weights=True),
}


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("kind", COMPILED)
def test_under_compile_a_weight_moves_once_a_step(kind, backend):
    moved = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6))
        optimizer = COMPILED[kind](model)
        step = torch.compile(optimizer.step, backend=backend) if compiled else optimizer.step
        for i in range(3):
            for p in model.parameters():
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(i)).to(p.dtype)
            step()
        moved.append([p.detach().clone() for p in model.parameters()])
        assert all(weight.steps == 3 for weight in Handle.of(optimizer).weights)
    assert all(torch.equal(*pair) for pair in zip(*moved))


def test_fresh_moments_leave_the_masters():
    model = nn.Linear(8, 8).bfloat16()
    optimizer = GSRAdamW(model, 1e-5, rho=0.5, master_weights=True)
    for _ in range(3):
        model.weight.grad = torch.ones(8, 8, dtype=torch.bfloat16)
        optimizer.step()
    master = optimizer.state[model.weight]["master"].clone()
    # what bfloat16 cannot hold is in the master alone
    assert not torch.equal(master, model.weight.float())
    optimizer.handle.refresh(reset_moments=True)
    assert torch.equal(optimizer.state[model.weight]["master"], master)
    assert "exp_avg" not in optimizer.state[model.weight]
    model.weight.grad = torch.zeros(8, 8, dtype=torch.bfloat16)
    optimizer.param_groups[0]["weight_decay"] = 0.0
    optimizer.step()
    state = optimizer.state[model.weight]
    assert torch.equal(state["master"], master) and state["step"] == 1 and not state["exp_avg"].any()
