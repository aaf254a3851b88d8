"""The kernel that merges, in the interpreter, against the dense form."""

from typing import get_args

import pytest
import torch

from gsr_kernels.adapters.merging import How, merge
from python_tests.adapters import reference
from python_tests.adapters.factors import draw_tasks
from python_tests.oracle import assert_as_good, double, error


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("how", get_args(How))
@pytest.mark.parametrize("shape", [(7, 5, 1, 1), (40, 33, 3, 4), (1, 1, 1, 2)], ids=str)
def test_against_the_dense_form(shape, how, dtype):
    W, B, A = (one.to(dtype) for one in draw_tasks(*shape))
    truth = W.double() + reference.merged(*double(B, A), how, 1.0)
    same = (W.float() + reference.merged(B.float(), A.float(), how, 1.0)).to(dtype)
    assert_as_good(merge(W.clone(), B, A, how, 1.0, backend="triton"), truth, same)


def test_of_equal_sizes_the_newest_counts():
    B = torch.tensor([[[1.0], [1.0]], [[-1.0], [1.0]]])
    merged = merge(torch.zeros(2, 3), B, torch.ones(2, 1, 3), backend="triton")
    assert torch.equal(merged, torch.tensor([[-1.0] * 3, [1.0] * 3]))


def test_float64_and_wide_ranks():
    W, B, A = draw_tasks(5, 4, 200, 3)
    truth = W + reference.merged(B, A, "sum")
    assert error(merge(W.clone(), B, A, "sum", backend="triton"), truth) < 1e-12
    assert error(merge(W.float(), B.float(), A.float(), "sum", backend="triton"), truth) < 1e-5
