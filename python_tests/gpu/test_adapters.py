"""The adapters' kernels on a GPU against float64 and the dense form in torch."""

import pytest
import torch

from gsr_kernels.adapters.merging import merge
from gsr_kernels.adapters.stability import sign_shares
from gsr_kernels.linalg.polar import retract, tangent
from python_tests.adapters import reference
from python_tests.adapters.factors import SHAPES, dense, draw, draw_tasks, ours
from python_tests.gpu.weights import BF16, FP16, FP32
from python_tests.oracle import double

ALIGNED = ((3,), 512, 384, 8, 112)
LARGE = [*SHAPES, ALIGNED, ((1,), 129, 1000, 64, 30)]
# a rank, dtype, term and alignment are two kernels each: of float32 every rank, of the others what differs by them
CASES = [(shape, FP32, "both") for shape in LARGE]
CASES += [(shape, *one) for shape in SHAPES[:3] for one in ((BF16, "both"), (FP32, "sign"))]
CASES += [(ALIGNED, FP16, "both"), (ALIGNED, BF16, "sign")]


@pytest.mark.parametrize("shape, dtype, terms", CASES, ids=str)
def test_loss_and_gradients(as_good, shape, dtype, terms):
    factors = draw(shape, dtype)
    truth = dense(*double(*factors), 1.0, terms)
    same = dense(*(factor.float() for factor in factors), 1.0, terms)
    # products of three TF32 pieces, or of 16-bit numbers and a slope rounded to TF32
    floor = 2e-6 if dtype == FP32 else 1e-3
    for what, found, right, other in zip(
        ("loss", "grad B", "grad A"), ours(*factors, 1.0, terms, "triton"), truth, same
    ):
        as_good(what, found, right, other.to(found.dtype), max(floor, torch.finfo(found.dtype).eps))


@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_shares_of_signs(shape):
    factors = draw(shape, FP32)
    for found, truth in zip(sign_shares(*factors, backend="triton"), reference.sign_shares(*double(*factors))):
        # an entry next to zero may fall to the other side
        torch.testing.assert_close(found, truth, atol=1e-3, rtol=0)


@pytest.mark.parametrize("dtype", [FP32, FP16, BF16], ids=str)
@pytest.mark.parametrize("how", ["magnitude", "sum", "mean", "ties"])
def test_merging(as_good, how, dtype):
    W, B, A = (one.to(dtype) for one in draw_tasks(300, 700, 8, 5))
    truth = W.double() + reference.merged(*double(B, A), how, 0.3)
    same = (W.float() + reference.merged(B.float(), A.float(), how, 0.3)).to(dtype)
    as_good(how, merge(W.clone(), B, A, how, 0.3), truth, same, max(2e-6, torch.finfo(dtype).eps))


def test_the_retraction_is_orthonormal():
    X = torch.linalg.qr(torch.randn(8, 2048, 16)).Q
    found = retract(X, tangent(X, torch.randn_like(X) / 2048**0.5))
    assert (found.mT @ found - torch.eye(16)).abs().max() < 1e-5
