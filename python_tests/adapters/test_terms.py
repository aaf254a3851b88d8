"""The terms on PEFT's models: what they add to a step, once, whatever scales or accumulates the gradients."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from gsr_kernels import attach
from gsr_kernels.adapters.factors import adapter_names, find_factors
from gsr_kernels.adapters.stability import auto_alpha
from gsr_kernels.adapters.terms import OLoRA, PSLoRA, overlap_loss
from python_tests.adapters import reference
from python_tests.adapters.peft_models import pairs, with_adapters
from python_tests.oracle import error

TASKS = ("first", "second", "third")


def ps_lora(model, lam=0.3, alpha=0.5):
    """The sum over modules by its definition."""
    new, earlier = pairs(model, "third"), [pairs(model, name) for name in TASKS[:2]]
    total = 0
    for module, (B, A) in enumerate(new):
        old_B = torch.cat([one[module][0] for one in earlier], -1).detach()
        old_A = torch.cat([one[module][1] for one in earlier], -2).detach()
        scale = auto_alpha(old_B, old_A) if alpha == "auto" else alpha
        total = total + reference.stability_loss(B, A, old_B, old_A, scale, "both")
    return lam * total


def o_lora(model, lam=0.5):
    """The sum over modules and earlier tasks by its definition."""
    earlier = [pairs(model, name) for name in TASKS[:2]]
    new = pairs(model, "third")
    return lam * sum((old[i][1].detach() @ A.T).abs().sum() for old in earlier for i, (_, A) in enumerate(new))


def trained(model):
    return [parameter for name, parameter in model.named_parameters() if "third" in name]


@pytest.mark.parametrize("alpha", ["auto", 0.5])
def test_losses_are_those_of_the_definitions(alpha):
    model = with_adapters(*TASKS)
    for method, truth in ((PSLoRA(0.3, alpha=alpha), ps_lora(model, alpha=alpha)), (OLoRA(), o_lora(model))):
        term = method.bind(model)
        assert error(term.loss().detach(), truth.detach()) < 1e-10
        mine = torch.autograd.grad(term.loss(), term.parameters)
        for found, right in zip(mine, torch.autograd.grad(truth, term.parameters)):
            assert error(found, right) < 1e-10


def test_overlap_passes_gradcheck():
    A, old = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True), torch.randn(2, 4, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(overlap_loss, (A, old))
    assert overlap_loss(A.half(), old.half()).dtype == torch.float32


def test_once_a_step_however_many_micro_batches():
    model = with_adapters(*TASKS)
    x = torch.randn(4, 6, dtype=torch.float64)
    truth = torch.autograd.grad(model(x).square().mean() + ps_lora(model, alpha="auto") + o_lora(model), trained(model))
    before = [parameter.detach().clone() for parameter in trained(model)]
    optimizer = torch.optim.SGD(trained(model), lr=1.0)
    attach(model, optimizer, [PSLoRA(0.3), OLoRA()])
    for part in x.chunk(4):
        (model(part).square().mean() / 4).backward()
    optimizer.step()
    for old, parameter, gradient in zip(before, trained(model), truth):
        assert error(old - parameter.detach(), gradient) < 1e-10


class FusedSGD(torch.optim.SGD):
    """A step that is given scaled gradients and their scale, as the fused optimizers are."""

    _step_supports_amp_scaling = True

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(parameter.grad / self.grad_scale)


@pytest.mark.parametrize("kind", [torch.optim.SGD, FusedSGD])
def test_under_a_gradient_scaler(kind):
    model = with_adapters(*TASKS, dtype=torch.float32)
    x = torch.randn(4, 6)
    truth = torch.autograd.grad(model(x).square().mean() + ps_lora(model, alpha="auto"), trained(model))
    before = [parameter.detach().clone() for parameter in trained(model)]
    optimizer = kind(trained(model), lr=1.0)
    attach(model, optimizer, PSLoRA(0.3))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaler.scale(model(x).square().mean()).backward()
    scaler.step(optimizer)
    for old, parameter, gradient in zip(before, trained(model), truth):
        assert error(old - parameter.detach(), gradient) < 1e-5


def test_an_overflow_adds_nothing():
    model = with_adapters(*TASKS, dtype=torch.float32)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(trained(model), lr=1.0)
    attach(model, optimizer, PSLoRA(0.3))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaler.scale(model(torch.full((1, 6), torch.inf)).sum()).backward()
    scaler.step(optimizer)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_removed_or_without_gradients_it_adds_nothing():
    model = with_adapters(*TASKS)
    optimizer = torch.optim.SGD(trained(model), lr=1.0)
    handle = attach(model, optimizer, PSLoRA(0.3))
    before = [parameter.detach().clone() for parameter in trained(model)]
    optimizer.step()
    handle.remove()
    for parameter in trained(model):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert all(torch.equal(old, parameter) for old, parameter in zip(before, trained(model)))


@pytest.mark.parametrize("named", [True, False])
def test_a_closure_makes_the_gradients_that_it_adds_to(named):
    model, x = with_adapters(*TASKS), torch.randn(4, 6, dtype=torch.float64)
    truth = torch.autograd.grad(model(x).square().mean() + ps_lora(model, alpha="auto") + o_lora(model), trained(model))
    before = [parameter.detach().clone() for parameter in trained(model)]
    optimizer = torch.optim.SGD(trained(model), lr=1.0)
    attach(model, optimizer, [PSLoRA(0.3), OLoRA()])

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    assert (optimizer.step(closure=closure) if named else optimizer.step(closure)).ndim == 0
    for old, parameter, gradient in zip(before, trained(model), truth):
        assert error(old - parameter.detach(), gradient) < 1e-10


def test_shares_of_signs_over_all_modules():
    model = with_adapters(*TASKS)
    scalars = PSLoRA(0.3).bind(model).scalars()
    same = opposite = entries = 0
    for (B, A), (B1, A1), (B2, A2) in zip(*(pairs(model, name) for name in TASKS[::-1])):
        signs = ((B @ A) * (B1 @ A1 + B2 @ A2)).sign()
        same, opposite = same + (signs > 0).sum().item(), opposite + (signs < 0).sum().item()
        entries += signs.numel()
    assert scalars["ps_lora/same_sign"] == pytest.approx(same / entries)
    assert scalars["ps_lora/opposite_sign"] == pytest.approx(opposite / entries)
    assert OLoRA().bind(model).scalars()["o_lora/loss"] == pytest.approx(o_lora(model).item())


def test_adapters_by_name():
    model = with_adapters(*TASKS)
    assert adapter_names(model) == list(TASKS)
    first = find_factors(model, "first")[0]
    assert (first.shape, first.rank, first.scaling) == ((6, 2, 6), 2, 3.0)
    term = PSLoRA(1.0, new="second", earlier=["first"]).bind(model)
    assert {id(parameter) for parameter in term.parameters} == {
        id(parameter) for name, parameter in model.named_parameters() if "second" in name
    }


def test_bad_input_is_named():
    model = with_adapters(*TASKS)
    with pytest.raises(ValueError, match="model has no LoRA adapter"):
        PSLoRA(0.1).bind(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module"):
        OLoRA().bind("model")
    for lam in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"lam must be a finite number in \(0, inf\)"):
            OLoRA(lam)
    with pytest.raises(ValueError, match="alpha must be"):
        PSLoRA(0.1, alpha=0.0)
    with pytest.raises(ValueError, match="terms must be"):
        PSLoRA(0.1, terms="none")
    with pytest.raises(ValueError, match="adapter must be one of first, second, third, got 'fourth'"):
        PSLoRA(0.1, new="fourth").bind(model)
    with pytest.raises(ValueError, match="the first task needs no term"):
        OLoRA().bind(with_adapters("only"))
    with pytest.raises(ValueError, match="which is the new adapter"):
        OLoRA(new="first", earlier=["first"]).bind(model)
    with pytest.raises(ValueError, match="optimizer lacks 6 of the adapter's 6 factors"):
        attach(model, torch.optim.SGD([nn.Parameter(torch.zeros(1))]), PSLoRA(0.1))
    with pytest.raises(ValueError, match="PSLoRA supports descent: negate the loss"):
        attach(model, torch.optim.SGD(trained(model), maximize=True), PSLoRA(0.1))


def test_adapters_that_do_not_fit_together():
    model = with_adapters("first")
    model.add_adapter("wider", LoraConfig(r=3, target_modules=["0", "2", "4"]))
    with pytest.raises(
        ValueError, match=r"different rank or base: at .*0 .* is \(6, 3, 6\) of 'wider' and \(6, 2, 6\) of 'first'"
    ):
        PSLoRA(0.1).bind(model)
    model = with_adapters("first")
    model.add_adapter("fewer", LoraConfig(r=2, target_modules=["0", "2"]))
    with pytest.raises(ValueError, match=r"'fewer' and 'first' differ in their modules: .*4"):
        OLoRA().bind(model)


def test_adapters_that_are_not_plain():
    model = get_peft_model(nn.Sequential(nn.Linear(4, 4)), LoraConfig(use_dora=True, target_modules=["0"]))
    with pytest.raises(TypeError, match="is a DoraLinearVariant"):
        find_factors(model, "default")
    for layer, kind in ((nn.Embedding(4, 4), "Embedding"), (nn.Conv2d(2, 2, 3), "Conv2d")):
        model = get_peft_model(nn.Sequential(layer), LoraConfig(target_modules=["0"]))
        with pytest.raises(TypeError, match=f"a {kind}: only linear layers"):
            find_factors(model, "default")


def test_constants_follow_a_model_that_is_moved():
    model = with_adapters(*TASKS, dtype=torch.float32).to("meta")
    for method in (PSLoRA(0.3, alpha=1.0, terms="magnitude"), OLoRA()):
        term = method.bind(model)
        # as they were made before the move
        term._constants = [tuple(torch.ones_like(one, device="cpu") for one in each) for each in term._constants]
        assert {constant.device.type for _, each in term.modules() for constant in each} == {"meta"}
        assert {constant.device.type for each in term._constants for constant in each} == {"meta"}


class Experts(nn.Module):
    """A parameter that is no layer's weight."""

    def __init__(self):
        super().__init__()
        self.experts = nn.Module()
        self.experts.w = nn.Parameter(torch.randn(3, 6, 5))
        self.attention = nn.MultiheadAttention(4, 2)


@pytest.mark.parametrize(
    ("config", "kind"),
    [({"target_modules": [], "target_parameters": ["experts.w"]}, "Module"),
     ({"target_modules": ["attention"]}, "MultiheadAttention")],
)  # fmt: skip
def test_what_holds_no_single_matrix_is_no_linear_layer(config, kind):
    model = get_peft_model(Experts(), LoraConfig(**config))
    with pytest.raises(TypeError, match=f"a {kind}: only linear layers"):
        find_factors(model, "default")


def test_the_newest_adapter_is_the_one_that_was_added_last():
    model = get_peft_model(
        nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)), LoraConfig(target_modules=["1"]), adapter_name="first"
    )
    model.add_adapter("second", LoraConfig(target_modules=["0", "1"]))
    assert adapter_names(model) == ["first", "second"] == adapter_names(nn.Sequential(model))


def test_modules_of_other_dtypes_are_not_put_together():
    model = with_adapters(*TASKS)
    truth = ps_lora(model).item()
    for parameter in model.base_model.model[2].parameters():
        parameter.data = parameter.data.float()
    assert PSLoRA(0.3, alpha=0.5).bind(model).loss().item() == pytest.approx(truth, rel=1e-5)


def test_a_bias_and_sharded_factors_are_refused():
    model = get_peft_model(nn.Sequential(nn.Linear(4, 4)), LoraConfig(target_modules=["0"], lora_bias=True))
    with pytest.raises(TypeError, match=r"has a bias at base_model\.model\.0"):
        find_factors(model, "default")
    model = with_adapters("first")
    model.base_model.model[0].lora_A["first"].weight.placements = ()
    with pytest.raises(TypeError, match=r"0 is sharded \(DTensor\)"):
        find_factors(model, "first")
    sharded = torch.zeros(4, 3)
    sharded.placements = ()
    with pytest.raises(TypeError, match=r"old_A is sharded \(DTensor\)"):
        overlap_loss(torch.zeros(2, 3), sharded)
