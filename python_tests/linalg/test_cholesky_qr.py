"""Thin QR by Cholesky factors, up to where reflections take over."""

import pytest
import torch

from bench.decompositions import matrix, spectrum
from gsr_kernels.linalg.cholesky_qr import cholesky_qr, normalized, orthonormal
from python_tests.linalg.truth import defect


@pytest.mark.parametrize("shape", [(300, 40), (64, 64), (5, 1)])
@pytest.mark.parametrize("condition", [1e0, 1e3, 1e5, 1e9])
def test_orthonormal_triangular_and_exact(shape, condition):
    W = matrix(*shape, spectrum("log", shape[1], condition))
    Q, R = cholesky_qr(W)
    assert defect(Q) <= 2e-6
    assert defect(orthonormal(W)) <= 2e-6
    assert torch.equal(R, R.triu())
    assert torch.dist(Q @ R, W) <= 2e-6 * W.norm()


def test_batches_with_a_matrix_without_rank():
    W = torch.randn(3, 30, 8)
    W[1] = 0
    W[2, :, 4] = W[2, :, 3]
    Q, R = cholesky_qr(W)
    assert defect(Q) <= 2e-6
    torch.testing.assert_close(Q @ R, W)


def test_an_infinite_entry_leaves_nothing_finite():
    for value in (torch.inf, -torch.inf, torch.nan):
        W = torch.stack([torch.eye(5), torch.eye(5)])
        W[1, 2, 2] = value
        Q, R = cholesky_qr(W)
        assert torch.equal(Q[0].abs(), torch.eye(5)) and torch.equal(R[0].abs(), torch.eye(5))
        assert Q[1].isnan().all() and R[1].isnan().all() and orthonormal(W[1]).isnan().all()


def test_a_basis_of_the_same_columns():
    Y = torch.randn(50, 7)
    Q = orthonormal(Y)
    torch.testing.assert_close(Q @ (Q.T @ Y), Y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("condition", [1e0, 1e2, 1e4, 1e9])
def test_normalized_columns_have_the_same_span(condition):
    Y = matrix(90, 12, spectrum("log", 12, condition))
    Y[:, 3] *= 1e3
    Q = normalized(Y)
    # near enough to be multiplied on
    assert defect(Q) <= 0.1
    basis = torch.linalg.qr(Q.double()).Q
    assert torch.dist(basis @ (basis.T @ Y.double()), Y.double()) <= 1e-5 * Y.norm()
    zero = normalized(torch.zeros(9, 4))
    assert defect(zero) <= 1e-6
