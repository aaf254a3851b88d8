import pytest
import torch

from gsr_kernels import SpectralBasis
from gsr_kernels.methods import GSRFull
from python_tests.methods import reference
from python_tests.oracle import double, error

SHAPES = [(40, 40), (48, 20), (17, 33), (1, 20), (20, 1), (3, 24, 16), (2, 2, 12, 12)]


def rescaled(G, W, basis, p, out_of_span):
    method = GSRFull(p, out_of_span)
    return method.gradient(G, W, basis, method.prepare("w", W, basis))


def mode_of(shape, rank, out_of_span):
    """The whole basis of a square weight spans everything: both modes are one operator, up to rounding of the basis."""
    return "drop" if rank is None and shape[-1] == shape[-2] else out_of_span


@pytest.mark.parametrize("p", [0, 0.5, 1, 2])
@pytest.mark.parametrize("out_of_span", ["drop", "keep"])
@pytest.mark.parametrize("rank", [None, 5])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float64_is_the_literal_form(shape, rank, out_of_span, p):
    rank = rank and min(rank, *shape[-2:])
    W, G = torch.randn(2, *shape, dtype=torch.float64)
    basis = SpectralBasis.of(W, rank=rank)
    truth = reference.gsr_full(G, basis.U, basis.S, basis.Vh, p, mode_of(shape, rank, out_of_span))
    assert error(rescaled(G, W, basis, p, out_of_span), truth) < 1e-10


@pytest.mark.parametrize("p", [0, 0.5, 1, 2])
@pytest.mark.parametrize("out_of_span", ["drop", "keep"])
@pytest.mark.parametrize("rank", [None, 5])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float32_is_as_good_as_torch(shape, rank, out_of_span, p):
    rank = rank and min(rank, *shape[-2:])
    mode = mode_of(shape, rank, out_of_span)
    # over several weights: the preconditioner of a single ill-conditioned one may be three times worse, or better
    errors, allowed = 0.0, 0.0
    for _ in range(8):
        W, G = torch.randn(2, *shape, dtype=torch.float64)
        basis = SpectralBasis.of(W, rank=rank)
        # orthonormal up to one rounding, which a float32 decomposition is not: P_L and P_R take U Uᵀ and V Vᵀ for 1
        basis = SpectralBasis(basis.U.float(), basis.S.float(), basis.Vh.float())
        W, G = W.float(), G.float()
        truth = reference.gsr_full(*double(G, basis.U, basis.S, basis.Vh), p, mode)
        plain = reference.gsr_full(G, basis.U, basis.S, basis.Vh, p, mode)
        errors += error(rescaled(G, W, basis, p, out_of_span), truth)
        allowed += 2 * max(error(plain, truth), torch.finfo(G.dtype).eps / 2)
    assert errors <= allowed


@pytest.mark.parametrize("shape", [(20, 20), (20, 8), (8, 20)], ids=str)
def test_zero_and_rank_deficient_weights(shape):
    G = torch.randn(shape, dtype=torch.float64)
    deficient = torch.randn(shape[0], 3, dtype=torch.float64) @ torch.randn(3, shape[1], dtype=torch.float64)
    for W in (torch.zeros_like(G), deficient):
        basis = SpectralBasis.of(W)
        truth = reference.gsr_full(G, basis.U, basis.S, basis.Vh, 1, "drop")
        assert error(rescaled(G, W, basis, 1, "drop"), truth) < 1e-10
    assert not rescaled(torch.zeros_like(G), W, basis, 1, "drop").any()


@pytest.mark.parametrize("scale", [1e25, 1e-25])
def test_extreme_magnitudes(scale):
    W, G = torch.randn(2, 24, 16)
    basis = SpectralBasis.of(W)
    truth = reference.gsr_full(*double(G * scale, basis.U, basis.S, basis.Vh), 2, "drop")
    assert error(rescaled(G * scale, W, basis, 2, "drop"), truth) < 1e-5


@pytest.mark.parametrize("p", [-1, float("nan"), float("inf")])
def test_refuses_a_p_out_of_range(p):
    with pytest.raises(ValueError, match="p must be"):
        GSRFull(p)


def test_refuses_an_unknown_out_of_span():
    with pytest.raises(ValueError, match="out_of_span"):
        GSRFull(1, "lose")
