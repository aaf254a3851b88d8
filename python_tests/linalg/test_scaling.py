"""Powers of two are exact, whatever the default dtype, and to the ends of a dtype's range."""

import math

import pytest
import torch

import gsr_kernels
from gsr_kernels import ops
from gsr_kernels.backends.torch.products import power_of_two, times_power_of_two
from gsr_kernels.linalg import randomized_svd, svd
from python_tests.linalg.truth import reconstruction


@pytest.fixture(params=[torch.float16, torch.bfloat16, torch.float64], ids=str)
def default_dtype(request):
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_powers(dtype, default_dtype):
    exponent = torch.arange(-126, 128, dtype=torch.int32)
    assert power_of_two(exponent, dtype).tolist() == [2.0**e for e in range(-126, 128)]
    assert power_of_two(exponent, dtype).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_with_powers_of_any_size(dtype, default_dtype):
    finfo = torch.finfo(dtype)
    least = round(math.log2(finfo.smallest_normal))
    denormal = finfo.smallest_normal * finfo.eps
    X = torch.tensor([1.5, denormal, finfo.smallest_normal], dtype=dtype)
    up = -least + round(-math.log2(finfo.eps))
    scaled = times_power_of_two(X[1:], torch.tensor(up))
    assert scaled.dtype == dtype and scaled.tolist() == [1, 1 / finfo.eps]
    assert times_power_of_two(scaled, torch.tensor(-up)).tolist() == X[1:].tolist()
    assert times_power_of_two(X[0], torch.tensor(least)).item() == 1.5 * finfo.smallest_normal


def test_denormal_weights_are_decomposed(default_dtype):
    W = torch.randn(12, 7, dtype=torch.float32)
    for scale in (2.0**-140, 2.0**-130, 2.0**-100, 2.0**100):
        scaled = W * scale
        # a denormal weight has few bits: their rounding is no error of the decomposition
        truth = scaled.double() / scale
        for U, S, Vh in (svd(scaled), randomized_svd(scaled, 7)[:3], randomized_svd(scaled, 7, 0)[:3]):
            assert reconstruction(truth, U, S.double() / scale, Vh) <= 1e-6 + 2.0**-149 / (scale * S.max() / scale)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("magnitude", [1.0, 2.0**-18])
def test_16_bits_are_rounded_once(dtype, magnitude):
    g = (torch.randn(3, 9) * magnitude).to(dtype)
    S = torch.rand(3, 9).sort(-1, descending=True).values
    exact = ops.rescale(g.double(), S.double(), 0.5)
    assert torch.equal(ops.rescale(g, S, 0.5), exact.float().to(dtype))


@pytest.mark.parametrize("magnitude", [1e30, 1.0, 3e-6, 1e-20, 1e-36])
def test_a_step_under_any_default_dtype(magnitude, default_dtype):
    generator = torch.Generator().manual_seed(0)
    W, G = torch.randn(2, 10, 8, dtype=torch.float32, generator=generator)
    basis = gsr_kernels.SpectralBasis.of(W)
    found = gsr_kernels.rescale_gradient(G * magnitude, basis, rho=0.5)
    expected = gsr_kernels.rescale_gradient((G * magnitude).double(), basis, rho=0.5)
    assert found.dtype == torch.float32
    assert torch.dist(found.double(), expected) <= 1e-5 * expected.norm()
