import copy

import pytest
import torch
from torch import nn

from gsr_kernels import SpectralBasis
from gsr_kernels.backends import dispatch
from gsr_kernels.backends.triton import adamw_kernels, fields
from gsr_kernels.backends.triton import plan_cache as steps
from gsr_kernels.backends.triton.moments import Moments, Settings
from gsr_kernels.backends.triton.plan import Plan
from gsr_kernels.methods import gsr
from gsr_kernels.optim import gsr_adamw
from python_tests.optim.toy import take_steps
from python_tests.optim.twins import assert_near, twins
from python_tests.oracle import by_triton

# shape, gradient, weight, moments, narrow copy, out_of_span, options of the basis
WEIGHTS = [
    ((24, 24), torch.float32, torch.float32, torch.float32, None, "drop", {}),
    ((24, 40), torch.float32, torch.float32, torch.float32, None, "drop", {}),
    ((17, 33), torch.float32, torch.float32, torch.float32, None, "drop", {}),
    ((1, 40), torch.float32, torch.float32, torch.float32, None, "drop", {}),
    ((40, 24), torch.bfloat16, torch.bfloat16, torch.bfloat16, None, "drop", {}),
    ((40, 24), torch.bfloat16, torch.bfloat16, torch.float32, None, "keep", {"rank": 7}),
    ((24, 40), torch.bfloat16, torch.float32, torch.float32, torch.bfloat16, "drop", {}),
    ((3, 16, 24), torch.float32, torch.float32, torch.float32, None, "drop", {}),
]
GROUPS = [
    {"lr": 1e-2, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.1},
    {"lr": torch.tensor(3e-3), "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0},
]


@pytest.fixture
def kernels(monkeypatch):
    """GSRAdamW takes its steps by kernels, as on a GPU; counts them."""
    calls = []
    run = steps.Steps.update

    def counted(self, gradients, *arguments):
        calls.append(len(gradients))
        return run(self, gradients, *arguments)

    monkeypatch.setattr(dispatch, "has_kernels", lambda device: True)
    monkeypatch.setattr(steps.Steps, "update", counted)
    return calls


def draw(weights=WEIGHTS):
    return [torch.randn(shape).to(dtype) for shape, dtype, *_ in weights]


def build(weights=WEIGHTS):
    bases = [SpectralBasis.of(torch.randn(shape), precision="fp16", **options) for shape, *_, options in weights]
    moments = []
    for i, (shape, _, weight, moment, copied, *_) in enumerate(weights):
        W = torch.randn(shape).to(weight)
        kept = torch.zeros(shape, dtype=moment), torch.zeros(shape, dtype=moment), torch.zeros(())
        narrow = None if copied is None else torch.full(shape, torch.nan, dtype=copied)
        moments.append(Moments(W, *kept, torch.zeros((), dtype=torch.int64), i % 2, narrow))
    dtypes, modes = [one[1] for one in weights], [one[5] for one in weights]
    plan = Plan(bases, dtypes, 0.5, modes, workspace_mb=0.01, updates=[one.update for one in moments])
    return plan, bases, moments


def adamw(W, m, v, G, group, step):
    """Algorithm 2 of Loshchilov and Hutter, in float64."""
    lr, (beta1, beta2) = float(group["lr"]), group["betas"]
    m = beta1 * m + (1 - beta1) * G
    v = beta2 * v + (1 - beta2) * G * G
    mean, root = m / (1 - beta1**step), (v / (1 - beta2**step)).sqrt()
    return W - lr * (mean / (root + group["eps"]) + group["weight_decay"] * W), m, v


def test_a_step_of_every_form_against_float64():
    plan, bases, moments = build()
    settings = Settings(len(GROUPS), torch.device("cpu"))
    settings.set(GROUPS, None, None)
    for step in (1, 2, 3):
        gradients = draw()
        before = [(one.weight.double(), one.exp_avg.double(), one.exp_avg_sq.double()) for one in moments]
        written = [torch.empty(G.shape) for G in gradients]
        for G, basis, out, (*_, mode, _) in zip(gradients, bases, written, WEIGHTS):
            by_triton(basis.split(G).float(), basis, 0.5, mode, basis.split(out))
        kept = [G.clone() for G in gradients]
        plan.update(gradients, moments, settings)
        for one, (W, m, v), G in zip(moments, before, written):
            right = adamw(W, m, v, G.double(), GROUPS[one.group], step)
            for found, value in zip((one.weight, one.exp_avg, one.exp_avg_sq), right):
                rounding = 2 * torch.finfo(found.dtype).eps + 1e-6
                torch.testing.assert_close(found.double(), value, rtol=rounding, atol=1e-6)
            assert one.step == step and one.skipped == 0
            # the interpreter cuts where a GPU rounds
            if one.copy is not None:
                torch.testing.assert_close(one.copy.float(), one.weight, rtol=2**-7, atol=0)
        # what backward() left is still there
        assert all(torch.equal(G, old) for G, old in zip(gradients, kept))


def test_a_matrix_that_is_not_finite_is_skipped_whole():
    plan, _, moments = build()
    settings = Settings(len(GROUPS), torch.device("cpu"))
    settings.set(GROUPS, None, None)
    plan.update(draw(), moments, settings)
    gradients = draw()
    gradients[1][3, 5], gradients[4][0, 0], gradients[7][1, 2, 3] = torch.nan, torch.inf, -torch.inf
    before = copy.deepcopy(moments)
    plan.update(gradients, moments, settings)
    for i, (one, old) in enumerate(zip(moments, before)):
        moved = (one.weight != old.weight).flatten(1 if i < 7 else 0).any()
        same = [torch.equal(getattr(one, key), getattr(old, key)) for key in ("weight", "exp_avg", "exp_avg_sq")]
        if i in (1, 4):
            assert all(same) and one.step == old.step and one.skipped == 1
        else:
            assert moved and not any(same) and one.step == old.step + 1
    experts, old = moments[7], before[7]
    assert experts.skipped == 1
    assert (experts.weight != old.weight).flatten(1).any(1).tolist() == [True, False, True]


def test_a_scaler_divides_and_an_overflow_leaves_all_as_it_was():
    twice = []
    for scale in (None, torch.tensor(1024.0)):
        torch.manual_seed(3)
        plan, _, moments = build()
        settings = Settings(len(GROUPS), torch.device("cpu"))
        settings.set(GROUPS, scale, None if scale is None else torch.zeros(()))
        plan.update([G if scale is None else G * 1024 for G in draw()], moments, settings)
        twice.append(moments)
    for plain, scaled in zip(*twice):
        torch.testing.assert_close(plain.weight, scaled.weight, rtol=1e-6, atol=1e-7)
    before = copy.deepcopy(moments)
    settings.set(GROUPS, scale, torch.ones(()))
    plan.update(draw(), moments, settings)
    for one, old in zip(moments, before):
        assert torch.equal(one.weight, old.weight) and torch.equal(one.exp_avg_sq, old.exp_avg_sq) and one.step == 1


def test_the_corrections_of_first_and_late_steps():
    # coefficients are a group's and a step's, whatever the form: a weight of each group, and experts
    weights = [WEIGHTS[3], WEIGHTS[1], WEIGHTS[7]]
    plan, _, moments = build(weights)
    settings = Settings(len(GROUPS), torch.device("cpu"))
    settings.set(GROUPS, None, None)
    for steps_taken in (0, 1, 12344, 2**24 - 2):
        for one in moments:
            one.step.fill_(steps_taken)
        plan.update(draw(weights), moments, settings)
        for row, matrix in zip(plan._coefficients.double(), plan._addresses.table):
            group = GROUPS[matrix[fields.SETTINGS.value]]
            beta1, beta2 = group["betas"]
            rate = float(group["lr"]) / (1 - beta1 ** (steps_taken + 1))
            assert row[adamw_kernels.RATE.value].item() == pytest.approx(rate, rel=1e-7)
            root = (1 - beta2 ** (steps_taken + 1)) ** -0.5
            assert row[adamw_kernels.ROOT.value].item() == pytest.approx(root, rel=1e-7)
        assert all(one.step == steps_taken + 1 for one in moments)


@pytest.mark.parametrize(
    ("steps_taken", "options"), [(10, {}), (4, {"out_of_span": "keep"}), (4, {"rank": 5})], ids=str
)
def test_it_is_attach_and_adamw(kernels, steps_taken, options):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Embedding(20, 12), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 12))
    (left, fused), (right, apart) = twins(model=model, **options)
    take_steps(left, fused, range(steps_taken))
    take_steps(right, apart, range(steps_taken))
    assert kernels == [2] * steps_taken
    assert_near(left.parameters(), right.parameters())
    for a, b in zip(left.parameters(), right.parameters()):
        assert fused.state[a]["step"] == apart.state[b]["step"] == steps_taken


def test_ascent_is_left_to_torch(kernels):
    (left, fused), (right, apart) = twins(maximize=True)
    take_steps(left, fused, range(5))
    take_steps(right, apart, range(5))
    assert not kernels
    assert_near(left.parameters(), right.parameters())


def test_experts_and_a_parameter_without_gradient(kernels):
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.Parameter(torch.randn(3, 8, 12) / 3)
            self.unused = nn.Linear(12, 12)
            self.used = nn.Linear(8, 12)

        def forward(self, x):
            return self.used(torch.einsum("bi,eoi->bo", x, self.experts))

    (left, fused), (right, apart) = twins(model=Experts())
    for model, optimizer in ((left, fused), (right, apart)):
        for step in range(4):
            optimizer.zero_grad()
            torch.manual_seed(step)
            model(torch.randn(5, 12)).square().mean().backward()
            optimizer.step()
    assert kernels == [2] * 4
    assert_near(left.parameters(), right.parameters())
    assert left.unused.weight not in fused.state or not fused.state[left.unused.weight]


def spoil_rows(model, state):
    # rows twice as long: the moments have none of that
    wide = torch.full((16, 24), 7.0)
    wide[:, :12] = model[1].weight.detach()
    model[1].weight.data = wide[:, :12]
    return wide


def spoil_second_moment(model, state):
    state["exp_avg_sq"] = torch.full_like(state["exp_avg_sq"], 0.5)
    return state["exp_avg_sq"]


def spoil_step(model, state):
    state["step"] = torch.tensor(100.0)
    return state["step"]


@pytest.mark.parametrize("spoil", [spoil_rows, spoil_second_moment, spoil_step], ids=lambda one: one.__name__)
def test_what_was_put_in_another_place_between_steps_is_found_there(kernels, spoil):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Embedding(20, 12), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 12))
    (left, fused), (right, apart) = twins(model=model)
    for one, optimizer in ((left, fused), (right, apart)):
        take_steps(one, optimizer, range(2))
        spoil(one, optimizer.state[one[1].weight])
        take_steps(one, optimizer, range(2, 4))
    if spoil is spoil_rows:
        # torch's fused step walks memory: the reference is the default one
        assert model[1].weight.isfinite().all() and kernels == [2, 2, 1, 1]
        buffer = model[1].weight.untyped_storage()
        assert (torch.tensor(buffer, dtype=torch.uint8).view(torch.float32).view(16, 24)[:, 12:] == 7).all()
        return
    assert kernels == [2] * 4
    assert_near(left.parameters(), right.parameters())
    assert fused.state[left[1].weight]["step"] == apart.state[right[1].weight]["step"]


def test_a_graph_keeps_its_plan_and_the_next_task_gets_another(kernels):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    fused = gsr_adamw.GSRAdamW(model, rho=0.5)

    def step():
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape)
        fused.step()

    step()
    (steps_of,) = [gsr.steps(method, "triton") for method in fused.handle.methods]
    (plan,) = steps_of._plans.values()
    # as a capture leaves it
    plan._addresses.frozen = True
    with pytest.raises(ValueError, match="captured graph"):
        step()
    with pytest.raises(ValueError, match="captured graph"):
        step()
    steps_of._set_apart(plan, ())
    before = model[0].weight.detach().clone()
    fused.handle.refresh()
    step()
    assert not torch.equal(model[0].weight, before)
    assert plan not in steps_of._plans.values() and steps_of._captured[0][0] is plan


def test_a_hook_that_comes_later_has_its_say(kernels):
    model = nn.Sequential(nn.Linear(8, 8, bias=False))
    fused = gsr_adamw.GSRAdamW(model, rho=0.5, weight_decay=0.0)

    def clear(*_):
        model[0].weight.grad.zero_()

    fused.register_step_pre_hook(clear)
    before = model[0].weight.detach().clone()
    model[0].weight.grad = torch.randn(8, 8)
    fused.step()
    assert kernels == [1] and torch.equal(model[0].weight, before)


def test_without_its_handle_it_moves_what_the_kernels_moved(kernels):
    model = nn.Sequential(nn.Linear(8, 8))
    fused = gsr_adamw.GSRAdamW(model, rho=0.5)
    for removed in (False, True):
        if removed:
            fused.handle.remove()
        before = model[0].weight.detach().clone()
        model[0].weight.grad = torch.randn(8, 8)
        fused.step()
        assert not torch.equal(model[0].weight, before)
    assert kernels == [1] and fused.state[model[0].weight]["step"] == 2
