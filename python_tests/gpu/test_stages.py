import pytest
import torch

from gsr_kernels import ops, reference
from python_tests.gpu.weights import BF16, FP16, FP32, RAGGED, draw
from python_tests.oracle import double, error


@pytest.fixture
def check(as_good):
    """A stage on the GPU against float64 and torch in the same dtype."""

    def check(name, *arguments):
        truth = getattr(reference, name)(*(a.double() if isinstance(a, torch.Tensor) else a for a in arguments))
        plain = getattr(ops, name)(*arguments, backend="torch")
        found = getattr(ops, name)(*arguments, backend="triton")
        if not isinstance(found, tuple):
            truth, plain, found = (truth,), (plain,), (found,)
        for one, right, same in zip(found, truth, plain):
            as_good(name, one, right, same, torch.finfo(one.dtype).eps)
        return found

    return check


@pytest.mark.parametrize("dtype", [FP32, FP16, BF16], ids=str)
@pytest.mark.parametrize("shape", [(512, 512), (1024, 384), *RAGGED], ids=str)
def test_stages(check, shape, dtype):
    basis, G = draw(shape, dtype, dtype)
    U, S, Vh = basis.U, basis.S.to(dtype), basis.Vh
    (N,) = check("project", G, U, Vh)
    H, K = check("skew", N, S)
    (g,) = check("rescale", N.diagonal(dim1=-2, dim2=-1), S, 0.5)
    check("recompose", H, g, K, U, S, Vh)


@pytest.mark.parametrize("dtype", [FP32, FP16, BF16], ids=str)
def test_a_single_direction(dtype):
    basis, G = draw((1, 64), dtype, dtype)
    U, S, Vh = basis.U, basis.S.to(dtype), basis.Vh
    N = ops.project(G, U, Vh, backend="triton")
    # one number may cancel: it is right to a rounding of what was added up
    assert (N.double() - reference.project(*double(G, U, Vh))).abs() <= torch.finfo(dtype).eps * G.double().norm()
    H, K = ops.skew(N, S, backend="triton")
    assert H.item() == K.item() == 0
    # alone in its group, a direction keeps its g
    g = ops.rescale(N.diagonal(), S, 0.5, backend="triton")
    assert error(g, N.diagonal()) <= torch.finfo(dtype).eps
    out = ops.recompose(H, g, K, U, S, Vh, backend="triton")
    assert error(out, g.double() * U.double() @ Vh.double()) <= torch.finfo(dtype).eps


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("dtype", [FP32, FP16], ids=str)
def test_operators_pass_opcheck(backend, dtype):
    basis, G = draw((48, 80), dtype, dtype)
    U, S, Vh = basis.U, basis.S.to(dtype), basis.Vh
    N = torch.randn(48, 48).to(dtype)
    calls = {
        ops._project: (G, U, Vh, backend),
        ops._skew: (N, S, backend),
        ops._rescale: (N.diagonal(), S, 0.5, 1e-6, backend),
        ops._recompose: (N, S, N, U, S, Vh, backend),
        ops._rescale_gradient: (G, U, basis.S, Vh, 0.5, "drop", torch.zeros_like(G), backend),
    }
    for operator, arguments in calls.items():
        assert set(torch.library.opcheck(operator, arguments).values()) == {"SUCCESS"}
