"""The operator where torch serves it; the kernel itself is python_tests/csrc/test_small_svd.py's."""

import pytest
import torch

from gsr_kernels import ops


def test_random_matrices():
    A = torch.randn(2, 3, 9, 9).mT
    U, S, Vh, sweeps = ops.small_svd(A)
    assert torch.allclose((U * S.unsqueeze(-2)) @ Vh, A, atol=1e-5) and torch.equal(sweeps, torch.ones(2, 3).int())
    assert (S.diff(dim=-1) <= 0).all()


def test_what_is_not_finite_comes_back_as_nan_and_is_flagged():
    A = torch.randn(3, 5, 5)
    A[1, 2, 2] = torch.inf
    *factors, sweeps = ops.small_svd(A)
    assert sweeps.tolist() == [1, -1, 1]
    assert all(factor[1].isnan().all() and factor[::2].isfinite().all() for factor in factors)


def test_no_matrices():
    assert [tuple(out.shape) for out in ops.small_svd(torch.zeros(0, 4, 4))] == [(0, 4, 4), (0, 4), (0, 4, 4), (0,)]


@pytest.mark.parametrize(
    "A, backend, error, message",
    [
        (torch.randn(4, 4).double(), "auto", TypeError, "A must be float32, got torch.float64"),
        (torch.randn(4, 5), "auto", ValueError, r"A must be \[.., k, k\], got \(4, 5\)"),
        (torch.randn(4), "auto", ValueError, "A must be"),
        (torch.zeros(0, 0), "auto", ValueError, "A must be"),
        (torch.randn(4, 4), "cuda", ValueError, "backend='cuda' is unavailable: it needs tensors on a CUDA device"),
        (
            torch.randn(4, 4),
            "numpy",
            ValueError,
            "backend must be one of auto, torch, triton, cublas, tma, cutlass, cuda",
        ),
    ],
)
def test_bad_input(A, backend, error, message):
    with pytest.raises(error, match=message):
        ops.small_svd(A, backend)


def test_opcheck():
    assert set(torch.library.opcheck(ops._small_svd, (torch.randn(2, 6, 6), "auto")).values()) == {"SUCCESS"}
