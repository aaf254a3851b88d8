import pytest
import torch

from gsr_kernels import SpectralBasis
from gsr_kernels.backends.torch.rescale_gradient import rescale_gradient as plain
from python_tests.oracle import assert_as_good, by_triton, diagonal, double, error, two_products

SHAPES = [(17, 33), (96, 40), (1, 64), (64, 64), (66, 129), (3, 24, 16)]
MODES = ["drop", "keep"]
SIXTEEN = torch.finfo(torch.float16).eps


def draw(shape, gradient, stored, rank=None):
    U, S, Vh = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    basis = SpectralBasis(
        U[..., :rank].to(stored).contiguous(), S[..., :rank].float(), Vh[..., :rank, :].to(stored).contiguous()
    )
    return basis, torch.randn(shape).to(gradient)


ASKED = ["triton"]


@pytest.fixture(autouse=True, params=["triton", "cublas"])
def backend(request):
    """Every test runs with Triton's products and with cuBLAS's, which are torch's here."""
    ASKED[0] = request.param


def step(G, basis, rho, mode, out=None):
    out = torch.full_like(G, torch.nan) if out is None else out
    return by_triton(G, basis, rho, mode, out, ASKED[0]), out


def check(G, basis, rho, mode):
    """g, and the step from g to G' apart, against float64 on the operands as stored and torch in their dtype."""
    g, out = step(G, basis, rho, mode)
    U, S, Vh, G64 = double(basis.U, basis.S, basis.Vh, G)
    stored = basis.U.dtype
    # a sum of so many products of that size, rounded in the operand's dtype
    assert_as_good(g, diagonal(G64, U, Vh), diagonal(G.to(stored), basis.U, basis.Vh), torch.finfo(stored).eps)
    truth = two_products(G64, g.double(), U, S, Vh, rho, mode)
    same = two_products(G.to(stored), g.to(stored), basis.U, basis.S.to(stored), basis.Vh, rho, mode)
    assert_as_good(out, truth, same, torch.finfo(stored).eps)
    return g, out


@pytest.mark.parametrize("stored", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_parity(shape, mode, stored):
    basis, G = draw(shape, stored, stored)
    check(G, basis, 0.5, mode)


@pytest.mark.parametrize("rho", [0.0, 1.0])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(17, 33), (96, 40), (48, 48)], ids=str)
def test_ends_of_rho(shape, mode, rho):
    basis, G = draw(shape, torch.float32, torch.float32)
    _, out = check(G, basis, rho, mode)
    if rho == 0 and (mode == "keep" or shape[0] == shape[1]):
        assert torch.equal(out, G)


@pytest.mark.parametrize("gradient", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(40, 96), (96, 40), (48, 48)], ids=str)
@pytest.mark.parametrize("scale", [1.0, 1e20, 1e-20])
def test_any_magnitude_fits_a_basis_in_fp16(shape, mode, gradient, scale):
    basis, G = draw(shape, gradient, torch.float16)
    G *= scale
    g, out = step(G, basis, 0.5, mode)
    U, S, Vh, G64 = double(basis.U, basis.S, basis.Vh, G)
    truth = two_products(G64 / scale, g.double() / scale, U, S, Vh, 0.5, mode)
    assert error(g.double() / scale, diagonal(G64, U, Vh) / scale) < SIXTEEN
    # the interpreter cuts bfloat16 off where a GPU rounds
    assert error(out.double() / scale, truth) < (SIXTEEN if gradient == torch.float32 else 2**-8)


@pytest.mark.parametrize("shape", [(40, 96), (96, 40)], ids=str)
def test_all_the_energy_in_one_direction_still_fits(shape):
    basis, _ = draw(shape, torch.float32, torch.float16)
    basis.S[1:] *= 1e-3
    G = basis.U.float() @ basis.Vh.float() * 1000
    g, out = step(G, basis, 1.0, "drop")
    U, S, Vh, G64 = double(basis.U, basis.S, basis.Vh, G)
    assert error(out, two_products(G64, g.double(), U, S, Vh, 1.0, "drop")) < 2 * SIXTEEN


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(40, 96), (96, 40)], ids=str)
def test_truncated(shape, mode):
    basis, G = draw(shape, torch.float32, torch.float32, rank=11)
    check(G, basis, 0.5, mode)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stored", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(2, 24, 40), (2, 40, 24), (2, 24, 24)], ids=str)
def test_what_is_not_finite_comes_back(shape, stored, mode, wrong):
    basis, G = draw(shape, torch.float32, stored)
    G[0, 3, 17] = wrong
    g, out = step(G, basis, 0.5, mode)
    assert torch.equal(g.isfinite().all(-1), torch.tensor([False, True]))
    torch.testing.assert_close(out[0], G[0], rtol=0, atol=0, equal_nan=True)
    expected = torch.empty_like(G)
    plain(G, basis.U, basis.S, basis.Vh, 0.5, mode, expected)
    assert error(out[1], expected[1]) < 4 * torch.finfo(stored).eps


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(34, 66), (66, 34), (34, 34)], ids=str)
def test_in_place_is_the_same(shape, mode):
    basis, G = draw(shape, torch.float32, torch.float32)
    _, apart = step(G, basis, 0.5, mode)
    step(G, basis, 0.5, mode, out=G)
    assert torch.equal(G, apart)


def test_strided_gradients_and_bases():
    basis, G = draw((40, 56), torch.float32, torch.float32)
    _, expected = step(G, basis, 0.5, "drop")
    lying = SpectralBasis(basis.U.mT.contiguous().mT, basis.S, basis.Vh.mT.contiguous().mT)
    out = torch.full((40, 112), torch.nan)[:, ::2]
    step(G.mT.contiguous().mT, lying, 0.5, "drop", out)
    assert torch.equal(out, expected)


def test_nothing_to_do():
    basis, G = draw((0, 12, 8), torch.float32, torch.float32)
    assert step(G, basis, 0.5, "drop")[1].shape == (0, 12, 8)
