import pytest
import torch
from torch import nn

from gsr_kernels import attach
from gsr_kernels.methods import OSF, adaptive_shares, scheduled_share
from python_tests.methods import reference
from python_tests.oracle import assert_as_good, double, error

SHAPES = [(40, 40), (48, 20), (17, 33), (1, 20), (20, 1), (3, 24, 16)]
VARIANTS = ["remove_block", "complement"]


def literal(G, U, Vh, variant):
    return G - reference.block(G, U, Vh) if variant == "remove_block" else reference.both_sides(G, U, Vh)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradient_is_the_literal_form(shape, variant):
    method = OSF(0.4, variant)
    W, G = torch.randn(2, *shape, dtype=torch.float64)
    basis = method.decompose("w", W, None, None)
    assert basis.rank == max(1, int(0.4 * min(shape[-2:])))
    truth = literal(G, basis.U, basis.Vh, variant)
    # relative to G: of a single row the complement of both sides is 0
    assert error(method.gradient(G, W, basis, {}) + G, truth + G) < 1e-10

    W, G = W.float(), G.float()
    basis = method.decompose("w", W, None, None)
    truth = literal(*double(G, basis.U, basis.Vh), variant)
    plain = literal(G, basis.U, basis.Vh, variant)
    assert_as_good(method.gradient(G, W, basis, {}) + G, truth + G, plain + G)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_constrain_projects_the_change_of_the_weight(shape, variant):
    method = OSF(0.4, variant)
    W, change = torch.randn(2, *shape, dtype=torch.float64)
    basis = method.decompose("w", W, None, None)
    moved = W + change
    method.constrain(moved, basis, method.prepare("w", W, basis))
    assert error(moved, W + literal(change, basis.U, basis.Vh, variant)) < 1e-10


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


def test_adaptive_shares_scale_importance_to_mean_one():
    shares = adaptive_shares({"a": 0.2, "b": 0.6, "c": 0.4, "d": -0.4, "e": 1.2})
    expected = {"a": 0.45, "b": 1.0, "c": 0.8, "d": 0.0, "e": 1.0}
    assert shares == pytest.approx(expected)
    assert OSF(shares).protect == shares


def test_adaptive_shares_refuse_what_they_cannot_scale():
    with pytest.raises(ValueError, match="mrr and trr"):
        adaptive_shares({"a": 1}, mrr=0.9, trr=0.8)
    for importance in ({}, {"a": -0.1}):
        with pytest.raises(ValueError, match="positive mean"):
            adaptive_shares(importance)


def test_schedule():
    assert [scheduled_share(task, 4) for task in range(4)] == [0, 0.25, 0.5, 0.75]
    with pytest.raises(ValueError, match="task"):
        scheduled_share(4, 4)
