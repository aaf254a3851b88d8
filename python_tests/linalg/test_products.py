"""The product of a large matrix and a narrow one against float64, however they lie, whether or not oneDNN is there."""

import pytest
import torch

from gsr_kernels.backends.torch import products
from gsr_kernels.backends.torch.products import full_precision


@pytest.mark.parametrize("linear", [products.LINEAR, None], ids=["oneDNN", "plain"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(70, 50, 9), (5, 64, 1), (1, 1, 1), (1, 30, 4)])
def test_it_is_the_product_however_the_operands_lie(monkeypatch, linear, dtype, shape):
    monkeypatch.setattr(products, "LINEAR", linear)
    m, n, k = shape
    A, B = torch.randn(m, n, dtype=dtype), torch.randn(n, k, dtype=dtype)
    truth = A.double() @ B.double()
    # a float32 product in bf16 or TF32 would be off by 1e-3
    bound = {torch.float32: 3e-6, torch.float64: 1e-14}[dtype] * A.norm() * B.norm()
    with full_precision(A.device):
        for left in (A, A.mT.contiguous().mT, torch.randn(m, 2 * n, dtype=dtype)[:, ::2].copy_(A)):
            for right in (B, B.mT.contiguous().mT):
                found = products.product(left, right)
                assert found.dtype == dtype and torch.dist(found.double(), truth) <= bound


def test_batches():
    A, B = torch.randn(3, 20, 10), torch.randn(3, 10, 4)
    torch.testing.assert_close(products.product(A, B), A @ B)
    torch.testing.assert_close(products.product(A, B[0]), A @ B[0])


def test_operands_with_gaps_between_rows_are_left_to_torch(monkeypatch):
    asked = []
    monkeypatch.setattr(products, "LINEAR", lambda A, B, *_: asked.append((A, B)) or A @ B.mT)
    A, B = torch.randn(20, 30), torch.randn(15, 8)
    torch.testing.assert_close(products.product(A[:, :15], B), A[:, :15] @ B)
    torch.testing.assert_close(products.product(A[:, :15].contiguous(), B[:, :4]), A[:, :15] @ B[:, :4])
    assert not asked
    products.product(A[:, :15].contiguous(), B)
    assert len(asked) == 1
