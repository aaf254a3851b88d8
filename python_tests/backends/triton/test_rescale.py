import pytest
import torch

from gsr_kernels import ops, reference
from python_tests.oracle import assert_as_good, double

DTYPES = [torch.float32, torch.float16]
RHOS = [0.0, 0.5, 1.0]


def check(g, S, rho):
    """Triton's g' against float64, and torch's in the same dtype."""
    found = ops.rescale(g, S, rho, backend="triton")
    assert_as_good(found, reference.rescale(*double(g, S), rho), ops.rescale(g, S, rho, backend="torch"))
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1,), (17,), (66,), (3, 16), (2, 2, 10)], ids=str)
def test_any_shape(shape, dtype):
    check(torch.randn(shape).to(dtype), torch.rand(shape).add(0.1).sort(descending=True).values.to(dtype), 0.5)


def test_any_strides():
    g, S = torch.randn(40, 40).diagonal(), torch.rand(40, 2).sort(0, descending=True).values[:, 0]
    assert not g.is_contiguous() and not S.is_contiguous()
    check(g, S, 0.5)


@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_sign_pattern(dtype, rho):
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * 4)
    g = (signs * torch.rand(signs.shape).add(0.1)).to(dtype)
    S = torch.rand(signs.shape).add(0.1).sort(descending=True).values.to(dtype)
    rescaled = check(g, S, rho)
    assert torch.equal(rescaled.sign(), g.sign())
    if rho == 0:
        assert torch.equal(rescaled, g)


@pytest.mark.parametrize("scale", [1.0, 1e25, 1e-25])
def test_magnitudes_that_squares_leave(scale):
    g = torch.randn(3, 1500) * scale
    S = torch.rand(3, 1500).sort(descending=True).values
    truth = reference.rescale(g.double() / scale, S.double(), 0.5)
    assert_as_good(
        ops.rescale(g, S, 0.5, backend="triton") / scale, truth, ops.rescale(g, S, 0.5, backend="torch") / scale
    )


def test_dead_directions_keep_their_g():
    g, S = torch.randn(8), torch.tensor([4.0, 3.0, 2.0, 1.0, 1e-7, 1e-9, 0.0, 0.0])
    rescaled = check(g, S, 1.0)
    assert torch.equal(rescaled[4:], g[4:]) and not torch.equal(rescaled[:4], g[:4])
    assert torch.equal(ops.rescale(g, torch.zeros(8), 1.0, backend="triton"), g)
    assert torch.equal(ops.rescale(torch.zeros(8), S, 1.0, backend="triton"), torch.zeros(8))


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_comes_back(wrong):
    g = torch.randn(2, 9)
    g[0, 4] = wrong
    S = torch.rand(2, 9).sort(descending=True).values
    rescaled = ops.rescale(g, S, 1.0, backend="triton")
    torch.testing.assert_close(rescaled[0], g[0], rtol=0, atol=0, equal_nan=True)
    assert_as_good(rescaled[1], reference.rescale(*double(g[1], S[1]), 1.0), reference.rescale(g[1], S[1], 1.0))


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_operators_pass_opcheck(backend):
    U, S, Vh = torch.linalg.svd(torch.randn(12, 20), full_matrices=False)
    calls = {
        ops._rescale: (torch.randn(12, 12).diagonal(), S, 0.5, 1e-6, backend),
        ops._rescale_gradient: (torch.randn(12, 20), U, S, Vh, 0.5, "drop", torch.empty(12, 20), backend),
    }
    for operator, arguments in calls.items():
        assert set(torch.library.opcheck(operator, arguments).values()) == {"SUCCESS"}


def test_bad_input_is_named(monkeypatch):
    g, S = torch.randn(12), torch.rand(12)
    with pytest.raises(ValueError, match=r"g must be \(12,\)"):
        ops.rescale(g[:-1], S, 0.5)
    with pytest.raises(TypeError, match="g must be a real, dense floating-point"):
        ops.rescale(g.int(), S, 0.5)
    with pytest.raises(ValueError, match="rho"):
        ops.rescale(g, S, 1.5)
    with pytest.raises(ValueError, match="backend"):
        ops.rescale(g, S, 0.5, backend="numpy")
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match="TRITON_INTERPRET=1"):
        ops.rescale(g, S, 0.5, backend="triton")
