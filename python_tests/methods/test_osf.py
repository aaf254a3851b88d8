import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from gsr_kernels import attach
from gsr_kernels.methods import OSF, AdaptiveOSF, ScheduledOSF, adaptive_shares, scheduled_share
from python_tests.methods import reference
from python_tests.oracle import assert_as_good, double, error

SHAPES = [(40, 40), (48, 20), (17, 33), (1, 20), (20, 1), (3, 24, 16)]
VARIANTS = ["remove_block", "complement"]
# on either side of where the directions that are left take fewer products
SHARES = [0.4, 0.8]


def literal(G, U, Vh, variant):
    return G - reference.block(G, U, Vh) if variant == "remove_block" else reference.both_sides(G, U, Vh)


def leak(change, basis, variant):
    """The larger norm of what a change moves of a protected part."""
    change, U, Vh = double(change, basis.U, basis.Vh)
    parts = [U.mT @ change @ Vh.mT] if variant == "remove_block" else [U.mT @ change, change @ Vh.mT]
    return max(part.norm() for part in parts)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradient_is_the_literal_form(shape, variant, share):
    method = OSF(share, variant)
    W, G = torch.randn(2, *shape, dtype=torch.float64)
    basis = method.decompose("w", W, None, None)
    assert basis.rank == max(1, int(share * min(shape[-2:])))
    truth = literal(G, basis.U, basis.Vh, variant)
    # relative to G: of a single row the complement of both sides is 0
    assert error(method.gradient(G, W, basis, method.prepare("w", W, basis)) + G, truth + G) < 1e-10

    W, G = W.float(), G.float()
    basis = method.decompose("w", W, None, None)
    truth = literal(*double(G, basis.U, basis.Vh), variant)
    plain = literal(G, basis.U, basis.Vh, variant)
    assert_as_good(method.gradient(G, W, basis, method.prepare("w", W, basis)) + G, truth + G, plain + G)


@pytest.mark.parametrize("share", [0.35, 0.45, 0.55, 0.9])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", [(40, 40), (80, 40), (40, 80)], ids=str)
def test_what_is_left_multiplies_where_that_takes_fewer_flop(shape, variant, share, monkeypatch):
    # what oneDNN multiplies is not counted
    monkeypatch.setattr("gsr_kernels.backends.torch.products.cpu_product", lambda: ("mm", ""))
    method, W = OSF(share, variant), torch.randn(shape)
    basis = method.decompose("w", W, None, None)
    d1, d2 = shape
    minor = torch.linalg.qr(basis.Vh.mT if d1 >= d2 else basis.U, mode="complete").Q[:, basis.rank :]
    flop = {}
    for name, state in (("left", {"minor": minor}), ("protected", {}), ("chosen", method.prepare("w", W, basis))):
        with FlopCounterMode(display=False) as counter:
            method.gradient(W, W, basis, state)
        flop[name] = counter.get_total_flops()
    assert flop["chosen"] == min(flop.values())


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", [(16, 16), (24, 16), (16, 24)], ids=str)
def test_a_gradient_is_rewritten_in_place_where_it_is_finite(shape, variant, share):
    method = OSF(share, variant)
    W, G = torch.randn(2, 5, *shape, dtype=torch.float64)
    basis = method.decompose("w", W, None, None)
    for at, value in enumerate((torch.nan, torch.inf, -torch.inf)):
        G[at, 3, 2] = value
    before, state = G.clone(), method.prepare("w", W, basis)
    assert method.transform([(G, W, basis, state)])[0].tolist() == [False] * 3 + [True] * 2
    torch.testing.assert_close(G[:3], before[:3], rtol=0, atol=0, equal_nan=True)
    assert error(G[3:], literal(before, basis.U, basis.Vh, variant)[3:]) < 1e-10


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_constrain_projects_the_change_of_the_weight(shape, variant, share):
    method = OSF(share, variant)
    W, change = torch.randn(2, *shape, dtype=torch.float64)
    basis = method.decompose("w", W, None, None)
    moved = W + change
    method.constrain(moved, basis, method.prepare("w", W, basis))
    assert error(moved, W + literal(change, basis.U, basis.Vh, variant)) < 1e-10


def test_a_weight_stays_a_weight_when_its_correction_is_interrupted(monkeypatch):
    W = torch.randn(6, 4)
    method, moved = OSF(), W + 0.01
    basis, state = method.decompose("W", W, None, None), {"start": W.clone()}

    def interrupt(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr("gsr_kernels.methods.projections.product", interrupt)
    with pytest.raises(KeyboardInterrupt):
        method.constrain(moved, basis, state)
    torch.testing.assert_close(moved, W + 0.01)


def test_one_share_is_rounded_down_and_no_further():
    W = torch.randn(100, 120)
    assert [OSF(share).decompose("w", W, None, None).rank for share in (0.29, 0.299, 1e-3)] == [29, 29, 1]


def test_shares_by_name():
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10))
    handle = attach(model, torch.optim.SGD(model.parameters()), OSF({"0.weight": 0.26, "1.weight": 1.0}))
    assert [weight.basis.rank for weight in handle.weights] == [3, 10]


def test_a_weight_without_a_share_is_named():
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10))
    with pytest.raises(ValueError, match=r"1.weight: protect has no share for it, but for 0.weight: add it"):
        attach(model, torch.optim.SGD(model.parameters()), OSF({"0.weight": 0.5}))


@pytest.mark.parametrize("protect", [0, -0.5, 1, 1.5, float("nan"), {}, {"a": 0}, {"a": 1, "b": 1}, {"a": 2, "b": 0.5}])
def test_refuses_to_protect_everything_or_nothing(protect):
    with pytest.raises(ValueError, match="protect"):
        OSF(protect)


def test_refuses_a_rank_and_an_unknown_variant():
    layer = nn.Linear(8, 8)
    with pytest.raises(ValueError, match="weight: rank must be None for OSF"):
        attach(layer, torch.optim.SGD(layer.parameters()), OSF(), rank=4)
    with pytest.raises(ValueError, match="variant"):
        OSF(variant="minor_block")


def test_a_weight_of_share_one_does_not_move_and_no_other_is_wholly_held():
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10))
    start = [layer.weight.detach().clone() for layer in model]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    handle = attach(model, optimizer, OSF({"0.weight": 1.0, "1.weight": 0.99}))
    assert [weight.basis.rank for weight in handle.weights] == [10, 9]
    for _ in range(3):
        model(torch.randn(4, 10)).square().sum().backward()
        optimizer.step()
    assert torch.equal(model[0].weight, start[0]) and not torch.equal(model[1].weight, start[1])


def test_adaptive_shares_scale_importance_to_mean_one():
    shares = adaptive_shares({"a": 0.2, "b": 0.6, "c": 0.4, "d": 0.0, "e": 0.8})
    assert shares == pytest.approx({"a": 0.45, "b": 1.0, "c": 0.8, "d": 0.1, "e": 1.0})
    assert adaptive_shares({"a": 0.2, "b": 0.6}, mrr=0.2, trr=0.4) == pytest.approx({"a": 0.3, "b": 0.5})
    assert OSF(shares).protect == shares


@pytest.mark.parametrize("importance", [{"a": 0.7, "b": 0.7}, {"a": -0.1, "b": 0.9}, {"a": 0.0, "b": 0.0}], ids=str)
def test_importance_that_tells_nothing_gives_equal_shares(importance):
    with pytest.warns(UserWarning, match=r"tells no block from another: every weight has the protected share 0.7"):
        assert adaptive_shares(importance, trr=0.7) == {"a": 0.7, "b": 0.7}


def test_adaptive_shares_refuse_what_they_cannot_scale():
    for settings in ({"mrr": 0.9}, {"trr": 1.1}):
        with pytest.raises(ValueError, match=r"mrr and trr|trr must be"):
            adaptive_shares({"a": 1}, **settings)
        with pytest.raises(ValueError, match=r"mrr and trr|trr must be"):
            AdaptiveOSF(**settings)
    for importance in ({}, {"a": float("nan")}):
        with pytest.raises(ValueError, match="importance must be finite"):
            adaptive_shares(importance)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("share", [0.5, 0.8, 0.97])
@pytest.mark.parametrize("size", [1e-6, 1e-4, 1e-2])
def test_a_corrected_weight_leaks_what_the_rounding_of_the_stored_one_has_in_the_protected_part(size, share, variant):
    method = OSF(share, variant)
    start, step = 0.02 * torch.randn(2, 64, 96)
    basis = method.decompose("w", start, None, None)
    W = start + size * step
    method.constrain(W, basis, method.prepare("w", start, basis))
    leaked = leak(W - start, basis, variant)
    # half a unit in the last place, evenly spread: the protected part has its share of that, as of any noise
    rounding = (torch.nextafter(W, W * 2) - W).double().norm() / math.sqrt(12)
    part = basis.rank / math.sqrt(64 * 96) if variant == "remove_block" else math.sqrt(basis.rank / 64)
    assert leaked.item() == pytest.approx(part * rounding.item(), rel=0.15)
    assert rounding <= 0.25 * torch.finfo(W.dtype).eps * W.norm()


@pytest.mark.parametrize("variant", VARIANTS)
def test_adaptive_form_does_not_leak_in_200_steps_of_adamw(variant):
    size = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2}
    # as Falcon3 is made
    model = LlamaForCausalLM(LlamaConfig(vocab_size=128, num_attention_heads=4, num_key_value_heads=2, **size))
    drawn = torch.randint(0, 128, (200, 2, 16))
    method = AdaptiveOSF(variant=variant).for_task(model, [{"input_ids": rows} for rows in drawn[:4]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    handle = attach(model, optimizer, method)
    start = [weight.parameter.detach().clone() for weight in handle.weights]
    for rows in drawn:
        optimizer.zero_grad()
        model(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
    for weight, before in zip(handle.weights, start):
        change = weight.parameter.detach() - before
        assert leak(change, weight.basis, variant) <= 1e-6 * change.norm()


def test_schedule():
    assert [scheduled_share(task, 4) for task in range(4)] == [0, 0.25, 0.5, 0.75]
    with pytest.raises(ValueError, match="task"):
        scheduled_share(4, 4)
    assert ScheduledOSF().for_task(nn.Linear(2, 2), [], 0, 4) is None
    assert ScheduledOSF("complement").for_task(nn.Linear(2, 2), [], 3, 4) == OSF(0.75, "complement")
