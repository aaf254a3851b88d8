import pytest
import torch

from gsr_kernels import reference
from python_tests.oracle import diagonal, error, two_products

SHAPES = [(6, 6), (9, 4), (4, 9), (1, 5), (5, 1), (3, 7, 5), (2, 3, 4, 4)]


def random_weight(*shape):
    W = torch.randn(shape, dtype=torch.float64)
    return torch.linalg.svd(W, full_matrices=False), torch.randn_like(W)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_skew_solves_the_equations_of_a_turning_basis(shape):
    (U, S, Vh), G = random_weight(*shape)
    N = reference.project(G, U, Vh)
    H, K = reference.skew(N, S)
    assert error(H, -H.mT) < 1e-12
    assert error(K, -K.mT) < 1e-12
    # off the diagonal the two turns carry all of N
    carried = H * S.unsqueeze(-2) + S.unsqueeze(-1) * K.mT
    eye = torch.eye(S.shape[-1], dtype=torch.bool)
    assert error(carried, N.masked_fill(eye, 0)) < 1e-9


@pytest.mark.parametrize("rho", [0, 0.5, 1])
@pytest.mark.parametrize("out_of_span", ["drop", "keep"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_literal_chain_is_the_two_product_form(shape, rho, out_of_span):
    (U, S, Vh), G = random_weight(*shape)
    literal = reference.rescale_gradient(G, U, S, Vh, rho, out_of_span)
    assert error(literal, two_products(G, diagonal(G, U, Vh), U, S, Vh, rho, out_of_span)) < 1e-10


def test_rescale_by_hand():
    # two positive directions share 3² + 4² by σ, one negative direction keeps its own, a zero stays
    g = torch.tensor([3.0, 4.0, -2.0, 0.0], dtype=torch.float64)
    S = torch.tensor([3.0, 1.0, 0.5, 0.25], dtype=torch.float64)
    expected = torch.tensor([(25 * 0.75) ** 0.5, (25 * 0.25) ** 0.5, -2.0, 0.0], dtype=torch.float64)
    assert torch.allclose(reference.rescale(g, S, 1), expected, rtol=1e-15)


def test_negative_directions_share_by_the_inverse_of_sigma():
    g = torch.tensor([-3.0, -4.0], dtype=torch.float64)
    S = torch.tensor([3.0, 1.0], dtype=torch.float64)
    expected = -torch.tensor([(25 * 0.25) ** 0.5, (25 * 0.75) ** 0.5], dtype=torch.float64)
    assert torch.allclose(reference.rescale(g, S, 1), expected, rtol=1e-15)


def test_directions_below_the_floor_take_no_part():
    g = torch.tensor([-3.0, -4.0, -5.0], dtype=torch.float64)
    S = torch.tensor([1.0, 1e-6, 0.0], dtype=torch.float64)
    assert torch.equal(reference.rescale(g, S, 1), g)


def test_tied_singular_values_give_no_turn():
    S = torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64)
    H, K = reference.skew(torch.randn(3, 3, dtype=torch.float64), S)
    assert H.isfinite().all() and K.isfinite().all()
    assert H[1, 2] == K[1, 2] == 0
    assert H[0, 1] != 0
