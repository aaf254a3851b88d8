import pytest
import torch

from gsr_kernels import ops, reference
from python_tests.gpu.weights import BF16, FP16, FP32, draw
from python_tests.oracle import assert_as_good


def check(name, *arguments):
    """A stage on the GPU against float64 and torch in the same dtype."""
    truth = getattr(reference, name)(*(a.double() if isinstance(a, torch.Tensor) else a for a in arguments))
    plain = getattr(ops, name)(*arguments, backend="torch")
    found = getattr(ops, name)(*arguments, backend="triton")
    if not isinstance(found, tuple):
        truth, plain, found = (truth,), (plain,), (found,)
    for one, right, same in zip(found, truth, plain):
        assert_as_good(one, right, same)
    return found


@pytest.mark.parametrize("dtype", [FP32, FP16, BF16], ids=str)
@pytest.mark.parametrize("shape", [(512, 512), (1024, 384), (130, 257), (17, 33), (2, 64, 96)], ids=str)
def test_stages(shape, dtype):
    basis, G = draw(shape, dtype, dtype)
    U, S, Vh = basis.U, basis.S.to(dtype), basis.Vh
    (N,) = check("project", G, U, Vh)
    H, K = check("skew", N, S)
    (g,) = check("rescale", N.diagonal(dim1=-2, dim2=-1), S, 0.5)
    check("recompose", H, g, K, U, S, Vh)
