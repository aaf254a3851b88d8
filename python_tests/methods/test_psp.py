import math

import pytest
import torch

from gsr_kernels import SpectralBasis, attach
from gsr_kernels.methods import PSP
from python_tests.methods import reference
from python_tests.oracle import assert_as_good, double, error

SHAPES = [(40, 40), (48, 20), (17, 33), (1, 20), (20, 1), (3, 24, 16)]
VARIANTS = ["minor_block", "middle", "complement", "remove_block"]


@pytest.mark.parametrize("k", [0.4, 0.9])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_the_literal_form(shape, variant, k):
    trained = math.ceil(k * min(shape[-2:]))
    method = PSP(k, variant)
    W, G = torch.randn(2, *shape, dtype=torch.float64)
    basis = SpectralBasis.of(W)
    truth = reference.psp(G, basis.U, basis.Vh, trained, variant)
    # what one product removes of another is rounding of G, however little is left
    assert error(method.gradient(G, W, basis, {}) + G, truth + G) < 1e-10

    W, G = W.float(), G.float()
    basis = SpectralBasis.of(W)
    truth = reference.psp(*double(G, basis.U, basis.Vh), trained, variant)
    plain = reference.psp(G, basis.U, basis.Vh, trained, variant)
    assert_as_good(method.gradient(G, W, basis, {}) + G, truth + G, plain + G)


@pytest.mark.parametrize(
    ("variant", "kept"), [("minor_block", 1 / 16), ("complement", 1 / 16), ("remove_block", 7 / 16)]
)
def test_energy_that_each_variant_keeps_of_a_random_square_gradient(variant, kept):
    W, G = torch.randn(2, 400, 400)
    projected = PSP(0.25, variant).gradient(G, W, SpectralBasis.of(W), {})
    assert projected.square().sum() / G.square().sum() == pytest.approx(kept, rel=0.05)


def test_the_middle_is_trained_between_the_highest_and_the_lowest():
    W, G = torch.randn(2, 10, 10, dtype=torch.float64)
    basis = SpectralBasis.of(W)
    N = basis.U.mT @ PSP(0.4, "middle").gradient(G, W, basis, {}) @ basis.Vh.mT
    whole = basis.U.mT @ G @ basis.Vh.mT
    trained = torch.zeros(10, 10, dtype=torch.bool)
    trained[3:7, 3:7] = True
    assert torch.allclose(N, torch.where(trained, whole, 0))


def test_the_trained_share_is_rounded_up_and_no_further():
    W, G = torch.randn(2, 10, 10, dtype=torch.float64)
    basis = SpectralBasis.of(W)
    for k, trained in ((0.7, 7), (0.71, 8), (1e-3, 1)):
        truth = reference.psp(G, basis.U, basis.Vh, trained, "minor_block")
        assert error(PSP(k).gradient(G, W, basis, {}), truth) < 1e-10


@pytest.mark.parametrize("k", [0, -0.1, 1.1, float("nan")])
def test_refuses_a_k_out_of_range(k):
    with pytest.raises(ValueError, match=r"k must be a finite number in \(0, 1\]"):
        PSP(k)


@pytest.mark.parametrize("variant", ["complement", "remove_block"])
def test_refuses_to_protect_nothing(variant):
    with pytest.raises(ValueError, match=r"k = 1 .* protects nothing"):
        PSP(1, variant)


def test_refuses_an_unknown_variant():
    with pytest.raises(ValueError, match="variant"):
        PSP(variant="minor")


def test_refuses_a_truncated_basis():
    layer = torch.nn.Linear(8, 8)
    with pytest.raises(ValueError, match=r"rank must be None for PSP: it leaves out directions of weight"):
        attach(layer, torch.optim.AdamW(layer.parameters()), PSP(), rank=4)
