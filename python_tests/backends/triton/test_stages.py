import pytest
import torch

from gsr_kernels import ops, reference
from gsr_kernels.backends.triton import product, stages
from python_tests.oracle import assert_as_good, double

SHAPES = [(17, 33), (96, 40), (1, 64), (66, 129), (3, 24, 16), (2, 2, 10, 12)]
DTYPES = [torch.float32, torch.float16]
RHOS = [0.0, 0.5, 1.0]


def factors(shape, dtype):
    U, S, Vh = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    return U.to(dtype), S.to(dtype), Vh.to(dtype)


def check(name, *arguments):
    """A stage of the Triton backend against float64, and torch's in the same dtype."""
    truth = getattr(reference, name)(*(a.double() if isinstance(a, torch.Tensor) else a for a in arguments))
    plain = getattr(ops, name)(*arguments, backend="torch")
    found = getattr(ops, name)(*arguments, backend="triton")
    if not isinstance(found, tuple):
        truth, plain, found = (truth,), (plain,), (found,)
    for one, right, same in zip(found, truth, plain):
        assert_as_good(one, right, same)
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_stages(shape, dtype):
    U, S, Vh = factors(shape, dtype)
    G = torch.randn(shape).to(dtype)
    (N,) = check("project", G, U, Vh)
    H, K = check("skew", N, S)
    (g,) = check("rescale", N.diagonal(dim1=-2, dim2=-1), S, 0.5)
    check("recompose", H, g, K, U, S, Vh)


@pytest.mark.parametrize("shape", [(17, 33), (2, 24, 40)], ids=str)
def test_any_strides(shape):
    U, S, Vh = factors(shape, torch.float32)
    lying = [tensor.mT.contiguous().mT for tensor in (torch.randn(shape), U, Vh)]
    assert not any(tensor.is_contiguous() for tensor in lying)
    (N,) = check("project", *lying)
    check("skew", N.mT, S)


def test_tied_singular_values_turn_nothing():
    S = torch.tensor([2.0, 2.0, 1.0, 1.0, 0.0, 0.0])
    N = torch.randn(6, 6)
    for found, right in zip(ops.skew(N, S, backend="triton"), reference.skew(N, S)):
        assert torch.equal(found == 0, right == 0)
        torch.testing.assert_close(found, right)


@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_sign_pattern(dtype, rho):
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * 4)
    g = (signs * torch.rand(signs.shape).add(0.1)).to(dtype)
    S = torch.rand(signs.shape).add(0.1).sort(descending=True).values.to(dtype)
    (rescaled,) = check("rescale", g, S, rho)
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
    (rescaled,) = check("rescale", g, S, 1.0)
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
    U, S, Vh = factors((12, 20), torch.float32)
    N = torch.randn(12, 12)
    calls = {
        ops._project: (torch.randn(12, 20), U, Vh, backend),
        ops._skew: (N, S, backend),
        ops._rescale: (N.diagonal(), S, 0.5, 1e-6, backend),
        ops._recompose: (N, S, N, U, S, Vh, backend),
        ops._rescale_gradient: (torch.randn(12, 20), U, S, Vh, 0.5, "drop", torch.empty(12, 20), backend),
    }
    for operator, arguments in calls.items():
        assert set(torch.library.opcheck(operator, arguments).values()) == {"SUCCESS"}


def test_bad_input_is_named():
    U, S, Vh = factors((12, 20), torch.float32)
    G = torch.randn(12, 20)
    with pytest.raises(ValueError, match=r"G must be \(12, 20\)"):
        ops.project(G[:, :-1], U, Vh)
    with pytest.raises(TypeError, match="G must be a real, dense floating-point"):
        ops.project(G.int(), U, Vh)
    with pytest.raises(ValueError, match="N must be"):
        ops.skew(G, S)
    with pytest.raises(ValueError, match="rho"):
        ops.rescale(S, S, 1.5)
    with pytest.raises(ValueError, match="backend"):
        ops.skew(torch.randn(12, 12), S, backend="numpy")
    with pytest.raises(TypeError, match="backend='torch'"):
        ops.project(*double(G, U, Vh), backend="triton")


def test_a_cpu_needs_the_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    U, _, Vh = factors((12, 20), torch.float32)
    with pytest.raises(ValueError, match="TRITON_INTERPRET=1"):
        ops.project(torch.randn(12, 20), U, Vh, backend="triton")


def test_a_batch_may_be_larger_than_the_second_dimension_of_a_grid(monkeypatch):
    # CUDA takes 65,535 programs there
    grids, batch = [], 70_000

    class Kernel:
        def __getitem__(self, grid):
            grids.append(grid)
            return lambda *given, **named: None

    monkeypatch.setattr(stages, "turn", Kernel())
    monkeypatch.setattr(stages, "middle", Kernel())
    monkeypatch.setattr(product, "multiply", Kernel())
    core, row = torch.zeros(batch, 2, 2), torch.zeros(batch, 2)
    stages.skew(core, row)
    stages.recompose(core, row, core, core, row, core)
    assert len(grids) == 4 and all(grid[0] == batch and max(grid[1:]) == 1 for grid in grids)
