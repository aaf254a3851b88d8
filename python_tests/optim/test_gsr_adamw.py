import copy
import io

import pytest
import torch
from torch import nn

from gsr_kernels import GSRAdamW, attach
from gsr_kernels.methods import OSF, PSP
from python_tests.optim.toy import assert_same_weights, loss_of, make_model, take_steps
from python_tests.optim.twins import SETTINGS, assert_near, twins


@pytest.mark.parametrize("options", [{}, {"out_of_span": "keep"}, {"rank": 5}, {"maximize": True}], ids=str)
def test_it_is_attach_and_adamw(options):
    (left, fused), (right, apart) = twins(**options)
    reference = copy.deepcopy(right)
    plain = torch.optim.AdamW(reference.parameters(), **{**SETTINGS, "maximize": options.get("maximize", False)})
    attach(reference, plain, rho=0.7, **{key: value for key, value in options.items() if key != "maximize"})
    for model, optimizer in ((left, fused), (right, apart), (reference, plain)):
        take_steps(model, optimizer, range(50))
    assert_near(left.parameters(), right.parameters())
    assert_near(left.parameters(), reference.parameters(), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_rho_0_and_keep_is_adamw_to_the_bit(dtype):
    (left, fused), (right, _) = twins(rho=0.0, out_of_span="keep", model=make_model(dtype))
    plain = torch.optim.AdamW(right.parameters(), fused=True, **SETTINGS)
    take_steps(left, fused, range(20))
    take_steps(right, plain, range(20))
    assert_same_weights(left, right)
    for a, b in zip(left.parameters(), right.parameters()):
        assert torch.equal(fused.state[a]["exp_avg_sq"], plain.state[b]["exp_avg_sq"])


def test_ascent_is_descent_along_the_other_gradient():
    up, down = make_model(), make_model()
    rising = GSRAdamW(up, rho=0.7, maximize=True, **SETTINGS)
    falling = GSRAdamW(down, rho=0.7, **SETTINGS)
    for step in range(5):
        for model, optimizer, sign in ((up, rising, -1), (down, falling, 1)):
            optimizer.zero_grad()
            (sign * loss_of(model, step)).backward()
            optimizer.step()
    assert_near(up.parameters(), down.parameters())


def test_groups_schedulers_and_closures():
    finals = []
    for kind in (GSRAdamW, torch.optim.AdamW):
        model = make_model()
        named = dict(model.named_parameters())
        decayed = [pair for pair in named.items() if pair[1].ndim > 1]
        plain = [pair for pair in named.items() if pair[1].ndim == 1]
        groups = [{"params": decayed, "weight_decay": 0.3}, {"params": plain, "lr": torch.tensor(3e-3)}]
        if kind is GSRAdamW:
            optimizer = GSRAdamW(groups, 1e-2, weight_decay=0.0, rho=0.5, targets=["1", "3", "5"])
        else:
            optimizer = torch.optim.AdamW(groups, 1e-2, weight_decay=0.0, fused=True)
            attach(model, optimizer, rho=0.5)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        for step in range(6):

            def closure(model=model, optimizer=optimizer, step=step):
                optimizer.zero_grad()
                loss = loss_of(model, step)
                loss.backward()
                return loss

            assert optimizer.step(closure).item() > 0
            scheduler.step()
        finals.append(model)
    assert_near(finals[0].parameters(), finals[1].parameters())


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens, self.up, self.lm_head = (
            nn.Embedding(20, 12),
            nn.Linear(12, 16),
            nn.Linear(16, 20, bias=False),
        )
        self.experts = nn.Parameter(torch.randn(3, 16, 16) / 4)

    def forward(self, tokens):
        return self.lm_head(torch.einsum("bi,eoi->bo", self.up(self.embed_tokens(tokens)).tanh(), self.experts))


def test_names_alone_tell_embeddings_and_heads():
    model = Named()
    expected = {"up.weight", "experts"}
    for given in (model, model.named_parameters(), dict(model.named_parameters())):
        assert {weight.name for weight in GSRAdamW(given, rho=0.5).handle.weights} == expected


def test_names_alone_tell_what_a_model_would():
    model = nn.ModuleDict(
        {
            "attention": nn.MultiheadAttention(8, 2),
            "memory": nn.LSTM(8, 8),
            "relative_attention_bias": nn.Embedding(4, 8),
            "position_embeddings": nn.Embedding(4, 8),
        }
    )
    found = [
        {weight.name: (tuple(weight.basis.shape), weight.basis.head_dim) for weight in optimizer.handle.weights}
        for optimizer in (GSRAdamW(model, rho=0.5), GSRAdamW(model.named_parameters(), rho=0.5))
    ]
    assert found[0] == found[1] and len(found[0]) == 2


def backward(model, spoiled=None):
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    if spoiled is not None:
        model.up.weight.grad[0, 0] = spoiled
        model.experts.grad[1, 2, 3] = spoiled


@pytest.mark.parametrize("spoiled", [torch.nan, torch.inf])
def test_a_matrix_that_is_not_finite_is_skipped_whole(spoiled):
    model = Named()
    optimizer = GSRAdamW(model, 1e-2, rho=0.5)
    backward(model)
    optimizer.step()
    before = copy.deepcopy((dict(model.named_parameters()), optimizer.state_dict()["state"]))
    backward(model, spoiled)
    optimizer.step()
    W, state = model.up.weight, optimizer.state[model.up.weight]
    i = next(i for i, name in enumerate(before[0]) if name == "up.weight")
    assert torch.equal(W, before[0]["up.weight"])
    assert all(torch.equal(state[key], before[1][i][key]) for key in ("step", "exp_avg", "exp_avg_sq"))
    moved = (model.experts != before[0]["experts"]).flatten(1).any(1)
    assert moved.tolist() == [True, False, True] and optimizer.state[model.experts]["step"] == 2
    assert (model.lm_head.weight != before[0]["lm_head.weight"]).any()
    assert optimizer.handle.metrics()["up.weight"]["skipped_nonfinite"] == 1
    assert optimizer.handle.metrics()["experts"]["skipped_nonfinite"] == 1


def test_a_grad_scaler_is_honoured():
    finals = []
    for scaled in (False, True):
        model = make_model()
        optimizer = GSRAdamW(model, rho=0.7, **SETTINGS)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=100, enabled=scaled)
        for step in range(6):
            optimizer.zero_grad()
            scaler.scale(loss_of(model, step)).backward()
            if scaled and step == 3:
                before = copy.deepcopy(list(model.parameters()))
                model[0].weight.grad[0, 0] = torch.inf
            if step != 3:
                scaler.step(optimizer)
                scaler.update()
            elif scaled:
                # an overflow anywhere: nothing moves, not even what was finite
                scaler.step(optimizer)
                scaler.update(2.0**12)
                assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before))
        finals.append(model)
    assert_near(finals[0].parameters(), finals[1].parameters(), 1e-5)


@pytest.mark.parametrize("options", [{}, {"state_dtype": torch.float32}, {"master_weights": True}], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_it_resumes_to_the_bit(options, dtype):
    straight, stopped = make_model(dtype), make_model(dtype)
    optimizer = GSRAdamW(straight, rho=0.7, **SETTINGS, **options)
    take_steps(straight, optimizer, range(8))
    first = GSRAdamW(stopped, rho=0.7, **SETTINGS, **options)
    take_steps(stopped, first, range(4))
    file = io.BytesIO()
    torch.save({"model": stopped.state_dict(), "optimizer": first.state_dict()}, file)
    bases = first.handle.bases
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = make_model(dtype)
    second = GSRAdamW(resumed, rho=0.7, **SETTINGS, **options)
    assert second.handle.bases.keys() == bases.keys()
    resumed.load_state_dict(saved["model"])
    second.load_state_dict(saved["optimizer"])
    take_steps(resumed, second, range(4, 8))
    assert_same_weights(straight, resumed)


@pytest.mark.parametrize("options", [{"state_dtype": torch.float32}, {"master_weights": True}], ids=str)
def test_wide_states_of_narrow_weights(options):
    narrow, wide = make_model(torch.bfloat16), make_model(torch.bfloat16).float()
    optimizer = GSRAdamW(narrow, rho=0.0, out_of_span="keep", **SETTINGS, **options)
    plain = torch.optim.AdamW(wide.parameters(), fused=True, **SETTINGS)
    for _ in range(10):
        for a, b in zip(narrow.parameters(), wide.parameters()):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.float()
        optimizer.step()
        plain.step()
    for a, b in zip(narrow.parameters(), wide.parameters()):
        state = optimizer.state[a]
        assert torch.equal(state["exp_avg"], plain.state[b]["exp_avg"]) and state["exp_avg"].dtype == torch.float32
        if "master_weights" in options:
            assert torch.equal(state["master"], b) and torch.equal(a, b.bfloat16())


def test_a_checkpoint_of_adamw_is_taken_over():
    (left, fused), (right, apart) = twins()
    reference = copy.deepcopy(right)
    plain = torch.optim.AdamW(reference.parameters(), **SETTINGS)
    take_steps(reference, plain, range(3))
    for model, optimizer in ((left, fused), (right, apart)):
        model.load_state_dict(reference.state_dict())
        with pytest.warns(UserWarning, match="holds nothing for the method"):
            optimizer.load_state_dict(plain.state_dict())
            take_steps(model, optimizer, range(3, 6))
    assert fused.param_groups[0]["fused"] is True
    assert_near(left.parameters(), right.parameters())


@pytest.mark.parametrize("method", [PSP(), OSF()], ids=lambda method: type(method).__name__)
def test_other_methods(method):
    left, right = make_model(), make_model()
    fused = GSRAdamW(left, method=method, **SETTINGS)
    apart = torch.optim.AdamW(right.parameters(), fused=True, **SETTINGS)
    attach(right, apart, method)
    take_steps(left, fused, range(5))
    take_steps(right, apart, range(5))
    assert_near(left.parameters(), right.parameters())


def test_model_and_handle_are_copied_together():
    model = make_model()
    optimizer = GSRAdamW(model, rho=0.7, **SETTINGS)
    take_steps(model, optimizer, range(3))
    twin, handle = copy.deepcopy((model, optimizer.handle))
    second = handle._optimizer
    assert second is not optimizer and second.handle is handle
    take_steps(model, optimizer, range(3, 6))
    take_steps(twin, second, range(3, 6))
    assert_same_weights(model, twin)

    alone, bare = copy.deepcopy((model, optimizer))
    with pytest.raises(RuntimeError, match=r"deepcopy the model and optimizer\.handle together"):
        take_steps(alone, bare, range(1))


def test_without_its_handle_it_is_adamw():
    (left, fused), (right, _) = twins()
    plain = torch.optim.AdamW(right.parameters(), fused=True, **SETTINGS)
    fused.handle.remove()
    take_steps(left, fused, range(3))
    take_steps(right, plain, range(3))
    assert_same_weights(left, right)
    with pytest.raises(RuntimeError, match="no handle"):
        fused.handle.metrics()


@pytest.mark.parametrize(
    ("error", "message", "given", "options"),
    [
        (ValueError, "amsgrad", None, {"rho": 0.5, "amsgrad": True}),
        (ValueError, "exactly one of method and rho", None, {}),
        (ValueError, "rho", None, {"rho": 1.5}),
        (ValueError, "learning rate", None, {"rho": 0.5, "lr": -1.0}),
        (ValueError, "state_dtype", None, {"rho": 0.5, "state_dtype": torch.int8}),
        (ValueError, "state_dtype", None, {"rho": 0.5, "state_dtype": torch.bfloat16, "master_weights": True}),
        (TypeError, r"model\.named_parameters", lambda model: model.parameters(), {"rho": 0.5}),
        (ValueError, "0 parameters", lambda model: [], {"rho": 0.5}),
        (ValueError, "under 1 names", lambda model: [("a", p) for p in list(model.parameters())[:2]], {"rho": 0.5}),
        (ValueError, "1 parameters under 2", lambda model: [(n, model[1].weight) for n in "ab"], {"rho": 0.5}),
        (ValueError, "requires a gradient", lambda model: model.requires_grad_(False), {"rho": 0.5}),
        (ValueError, "OSF corrects weights", lambda model: model.bfloat16(), {"method": OSF(), "master_weights": True}),
        (
            ValueError,
            "amsgrad",
            lambda model: [{"params": list(model.named_parameters()), "amsgrad": True}],
            {"rho": 0.5},
        ),
    ],
)
def test_what_is_refused(error, message, given, options):
    model = make_model()
    with pytest.raises(error, match=message):
        GSRAdamW(model if given is None else given(model), **options)


def test_later_groups_and_amsgrad_in_a_checkpoint_are_refused():
    model = make_model()
    optimizer = GSRAdamW(model, rho=0.5)
    with pytest.raises(ValueError, match="when it is built"):
        optimizer.add_param_group({"params": [("late", nn.Parameter(torch.randn(3, 3)))]})
    plain = torch.optim.AdamW(model.parameters(), amsgrad=True)
    with pytest.raises(ValueError, match="amsgrad"):
        optimizer.load_state_dict(plain.state_dict())
    assert not optimizer.param_groups[0]["amsgrad"]


def step_on(model, optimizer, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    optimizer.step()


@pytest.mark.parametrize("refreshed", [True, False])
def test_a_master_follows_weights_that_were_loaded(refreshed):
    model, merged = make_model(torch.bfloat16), make_model(torch.bfloat16)
    for parameter in merged.parameters():
        parameter.data.add_(1.0)
    optimizer = GSRAdamW(model, lr=0.0, rho=0.5, master_weights=True)
    step_on(model, optimizer, 0)
    saved = copy.deepcopy(optimizer.state_dict())
    if refreshed:
        model.load_state_dict(merged.state_dict())
        optimizer.handle.refresh()
    else:
        optimizer.load_state_dict(saved)
        model.load_state_dict(merged.state_dict())
    step_on(model, optimizer, 1)
    assert_same_weights(model, merged)


def test_load_pre_hooks_have_the_last_word():
    (left, fused), (right, apart) = twins(rho=0.0, out_of_span="keep")
    for model, optimizer in ((left, fused), (right, apart)):
        step_on(model, optimizer, 0)
        saved = copy.deepcopy(optimizer.state_dict())

        def turned(optimizer, given):
            state = {i: {**one, "exp_avg": -one["exp_avg"]} for i, one in given["state"].items()}
            return {**given, "state": state}

        optimizer.register_load_state_dict_pre_hook(turned)
        optimizer.load_state_dict(saved)
        step_on(model, optimizer, 1)
    assert_same_weights(left, right)


def test_the_state_of_another_optimizer_is_refused_before_anything_changes():
    model = make_model()
    optimizer = GSRAdamW(model, rho=0.5)
    step_on(model, optimizer, 0)
    before = copy.deepcopy(optimizer.state_dict()["state"])
    other = torch.optim.SGD(make_model().parameters(), 0.1, momentum=0.9)
    step_on(make_model(), other, 0)
    state = {i: {"momentum_buffer": torch.zeros(1)} for i in before}
    with pytest.raises(ValueError, match="not that of an AdamW"):
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    assert all(torch.equal(one["exp_avg"], before[i]["exp_avg"]) for i, one in optimizer.state_dict()["state"].items())


class Laid(nn.Module):
    """Weights that do not lie row by row, and one whose gradient does not."""

    def __init__(self):
        super().__init__()
        self.experts = nn.Parameter(torch.randn(8, 3, 12).transpose(0, 1))
        self.square = nn.Linear(8, 8, bias=False)
        self.rows = nn.Parameter(torch.randn(8, 16)[:, :8])
        self.deep = nn.Parameter(torch.randn(2, 4, 8, 6).contiguous(memory_format=torch.channels_last))
        self.bias = nn.Parameter(torch.randn(5, 10)[:, :5])


def test_weights_and_gradients_of_any_strides():
    left = Laid()
    right = copy.deepcopy(left)
    targets = ["experts", "square", "rows", "deep"]
    fused = GSRAdamW(left, rho=0.0, out_of_span="keep", targets=targets, **SETTINGS)
    plain = torch.optim.AdamW(right.parameters(), **SETTINGS)
    for step in range(3):
        for model, optimizer in ((left, fused), (right, plain)):
            generator = torch.Generator().manual_seed(step)
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            model.square.weight.grad = model.square.weight.grad.mT.contiguous().mT
            model.bias.grad = model.bias.grad.mT.contiguous().mT
            optimizer.step()
    assert_near(left.parameters(), right.parameters())


def test_another_default_dtype():
    model = make_model()
    torch.set_default_dtype(torch.bfloat16)
    try:
        optimizer = GSRAdamW(model, lr=0.0, rho=0.5)
        for _ in range(300):
            step_on(model, optimizer, 0)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(state["step"] == 300 and state["step"].dtype == torch.float32 for state in optimizer.state.values())


def test_group_options_of_another_adamw_are_put_right():
    model = make_model()
    groups = [{"params": list(model.named_parameters()), "fused": False, "foreach": True}]
    optimizer = GSRAdamW(groups, rho=0.5, targets=["1", "3"])
    assert optimizer.param_groups[0]["fused"] and not optimizer.param_groups[0]["foreach"]
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(loss_of(model, 0)).backward()
    scaler.step(optimizer)
    assert optimizer.state[model[1].weight]["step"] == 1


def test_sparse_gradients_are_refused_before_anything_moves():
    model = nn.Sequential(nn.Embedding(20, 12, sparse=True), nn.Linear(12, 12))
    optimizer = GSRAdamW(model, rho=0.5)
    before = copy.deepcopy(list(model.parameters()))
    model(torch.arange(5)).square().mean().backward()
    with pytest.raises(RuntimeError, match="sparse=False"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before))


def test_an_attach_of_other_options_is_obeyed():
    model = make_model()
    optimizer = GSRAdamW(model, rho=0.5)
    optimizer.handle.remove()
    attach(model, optimizer, rho=0.5, nonfinite="error")
    before = copy.deepcopy(list(model.parameters()))
    loss_of(model, 0).backward()
    model[1].weight.grad[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"1\.weight"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before))


def test_a_copy_takes_no_groups_either():
    _, handle = copy.deepcopy((model := make_model(), GSRAdamW(model, rho=0.5).handle))
    with pytest.raises(ValueError, match="when it is built"):
        handle._optimizer.add_param_group({"params": [("late", nn.Parameter(torch.randn(3, 3)))]})


@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 9, 4), (4, 24, 17), (2, 3, 5, 3)], ids=str)
def test_rho_0_and_keep_moves_experts_as_adamw_does_to_the_bit(shape):
    # matrices that are no multiple of a vector register
    start = torch.randn(shape)
    names, theirs = {"experts": nn.Parameter(start.clone())}, nn.Parameter(start.clone())
    fused = GSRAdamW(names.items(), rho=0.0, out_of_span="keep", targets="experts", **SETTINGS)
    plain = torch.optim.AdamW([theirs], fused=True, **SETTINGS)
    for _ in range(20):
        theirs.grad = torch.randn(shape)
        names["experts"].grad = theirs.grad.clone()
        fused.step(), plain.step()
    assert torch.equal(names["experts"], theirs)
    assert torch.equal(fused.state[names["experts"]]["exp_avg_sq"], plain.state[theirs]["exp_avg_sq"])


def test_parameters_in_another_order_take_their_own_moments():
    def build(reverse):
        model = make_model()
        named = sorted(model.named_parameters(), reverse=reverse)
        return model, GSRAdamW([{"params": named}], rho=0.5, targets=["1", "3", "5"], **SETTINGS)

    (model, optimizer), (again, other) = build(False), build(True)
    take_steps(model, optimizer, range(3))
    again.load_state_dict(model.state_dict())
    other.load_state_dict(optimizer.state_dict())
    take_steps(model, optimizer, range(3, 6))
    take_steps(again, other, range(3, 6))
    assert_same_weights(model, again)
