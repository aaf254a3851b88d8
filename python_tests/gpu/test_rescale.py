import pytest
import torch

from gsr_kernels import ops, reference
from python_tests.gpu.weights import BF16, FP16, FP32, RAGGED, draw
from python_tests.oracle import double, error


@pytest.mark.parametrize("dtype", [FP32, FP16, BF16], ids=str)
@pytest.mark.parametrize("shape", [(512, 512), (1024, 384), *RAGGED], ids=str)
def test_rescale(as_good, shape, dtype):
    basis, G = draw(shape, dtype, dtype)
    g, S = reference.project(G, basis.U, basis.Vh).diagonal(dim1=-2, dim2=-1), basis.S.to(dtype)
    found, plain = (ops.rescale(g, S, 0.5, backend=backend) for backend in ("triton", "torch"))
    as_good("rescale", found, reference.rescale(*double(g, S), 0.5), plain, torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [FP32, FP16, BF16], ids=str)
def test_a_single_direction(dtype):
    # alone in its group it keeps its g
    g, S = torch.randn(1).to(dtype), torch.rand(1).add(0.1).to(dtype)
    assert error(ops.rescale(g, S, 0.5, backend="triton"), g) <= torch.finfo(dtype).eps


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("dtype", [FP32, FP16], ids=str)
def test_operators_pass_opcheck(backend, dtype):
    basis, G = draw((48, 80), dtype, dtype)
    calls = {
        ops._rescale: (torch.randn(48, 48).to(dtype).diagonal(), basis.S.to(dtype), 0.5, 1e-6, backend),
        ops._rescale_gradient: (G, basis.U, basis.S, basis.Vh, 0.5, "drop", torch.zeros_like(G), backend),
    }
    for operator, arguments in calls.items():
        assert set(torch.library.opcheck(operator, arguments).values()) == {"SUCCESS"}
