"""The randomized SVD against the best that a rank can do, and against scikit-learn with the same settings."""

import numpy as np
import pytest
import torch

from bench.decompositions import OurOmega, matrix
from gsr_kernels import SpectralBasis
from gsr_kernels.linalg import randomized_svd
from python_tests.linalg.truth import SPECTRA, N, defect, remainder


@pytest.mark.parametrize("kind", SPECTRA)
@pytest.mark.parametrize("rank", [48, 12])
@pytest.mark.parametrize("sketch", ["gaussian", "sparse"])
def test_default_parameters_come_near_the_best(kind, rank, sketch):
    S = SPECTRA[kind]
    for W in (matrix(N, N, S), matrix(2 * N, N, S), matrix(N, 2 * N, S)):
        result = randomized_svd(W, rank, sketch=sketch)
        U, sigma, Vh, error = result
        assert U.shape == (W.shape[0], rank) and sigma.shape == (rank,) and Vh.shape == (rank, W.shape[1])
        assert defect(U) <= 1e-5 and defect(Vh.mT) <= 1e-5
        found = remainder(W, U, sigma, Vh)
        assert found <= 1.05 * S[rank]
        assert 0.94 * found <= error.item() <= 1.001 * found
        if kind in ("decaying", "steep"):
            assert sigma.double().square().sum() >= 0.99 * S[:rank].square().sum()


@pytest.mark.parametrize("kind", SPECTRA)
def test_never_worse_than_scikit_learn(kind):
    sklearn = pytest.importorskip("sklearn.utils.extmath")
    W = matrix(N, N, SPECTRA[kind])
    for rank, p, q in ((48, 48, 2), (48, 10, 4), (12, 12, 1), (12, 10, 4), (12, 0, 0)):
        factors = sklearn.randomized_svd(W.numpy(), rank, n_oversamples=p, n_iter=q, random_state=OurOmega())
        theirs = remainder(W, *map(torch.from_numpy, factors))
        assert remainder(W, *randomized_svd(W, rank, p, q)[:3]) <= 1.001 * theirs


def test_a_tolerance_raises_what_the_sketch_takes():
    W = matrix(N, N, SPECTRA["outliers"])
    best = SPECTRA["outliers"][20]
    crude = remainder(W, *randomized_svd(W, 20, 2, 0)[:3])
    fine = remainder(W, *randomized_svd(W, 20, 2, 0, tolerance=0.05)[:3])
    assert crude > 1.06 * best and fine <= 1.05 * best
    product = matrix(N, N, SPECTRA["flat"][:10])
    assert remainder(product, *randomized_svd(product, 20, tolerance=0.05)[:3]) <= 1e-5


def test_batches_are_the_matrices_one_by_one():
    W = torch.randn(2, 3, 40, 60)
    W[1, 1] = 0
    U, S, Vh, error = randomized_svd(W, 7)
    assert U.shape == (2, 3, 40, 7) and Vh.shape == (2, 3, 7, 60) and error.shape == (2, 3)
    one = randomized_svd(W[0, 2], 7)
    torch.testing.assert_close(S[0, 2], one.S)
    torch.testing.assert_close(U[0, 2] * S[0, 2] @ Vh[0, 2], one.U * one.S @ one.Vh, rtol=1e-4, atol=1e-4)
    assert S[1, 1].eq(0).all() and error[1, 1] == 0


def test_degenerate_matrices():
    duplicates = torch.randn(60, 48)
    duplicates[:, 1] = duplicates[:, 0]
    for W in (
        torch.zeros(30, 20),
        duplicates,
        torch.randn(1, 9),
        torch.randn(9, 1),
        torch.randn(50, 3) @ torch.randn(3, 40),
    ):
        for rank in {1, min(W.shape) // 2 or 1, min(W.shape)}:
            U, S, Vh, _ = randomized_svd(W, rank, 2)
            assert defect(U) <= 1e-5 and defect(Vh.mT) <= 1e-5
            best = torch.linalg.svdvals(W.double())[rank:].sum()
            assert remainder(W, U, S, Vh) <= 1.2 * best + 1e-5 * W.norm()


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_huge_and_tiny(scale):
    W = torch.randn(40, 30)
    plain, scaled = randomized_svd(W, 5), randomized_svd(W * scale, 5)
    torch.testing.assert_close(scaled.S / scale, plain.S)
    torch.testing.assert_close(scaled.error / scale, plain.error)


def test_the_seed_decides():
    W = torch.randn(64, 64)
    assert torch.equal(randomized_svd(W, 4, 4, 0, seed=5).U, randomized_svd(W, 4, 4, 0, seed=5).U)
    assert not torch.equal(randomized_svd(W, 4, 4, 0, seed=5).U, randomized_svd(W, 4, 4, 0, seed=6).U)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"rank": 0}, "rank"),
        ({"rank": 7}, r"rank must be an integer in \[1, 6\]"),
        ({"rank": 2.0}, "rank"),
        ({"oversampling": -1}, "oversampling"),
        ({"power_iterations": 1.5}, "power_iterations"),
        ({"seed": -1}, "seed"),
        ({"tolerance": 0}, "tolerance"),
        ({"tolerance": float("nan")}, "tolerance"),
        ({"tolerance": "5 %"}, "tolerance"),
        ({"sketch": "srht"}, "gaussian, sparse"),
    ],
)
def test_bad_settings_are_refused_by_name(settings, named):
    with pytest.raises(ValueError, match=named):
        randomized_svd(torch.randn(6, 8), **{"rank": 2, **settings})


def test_a_sparse_sketch_has_no_empty_rows():
    W = torch.randn(40, 30)
    with pytest.raises(ValueError, match="raise oversampling to 13, or take 'gaussian'"):
        randomized_svd(W, 3, 3, sketch="sparse")
    assert randomized_svd(W, 3, 13, sketch="sparse").error < 1.1 * torch.linalg.svdvals(W)[3]
    # all of a small W is taken in without a sketch
    assert randomized_svd(W[:6], 3, sketch="sparse").S.shape == (3,)


def test_a_sparse_sketch_of_any_rank_takes_its_defaults():
    for shape in ((40, 30), (17, 64), (16, 16)):
        W = torch.randn(shape)
        sigma = torch.linalg.svdvals(W.double())
        for rank in range(1, 9):
            U, S, Vh, _ = randomized_svd(W, rank, sketch="sparse")
            assert remainder(W, U, S, Vh) <= 1.05 * sigma[rank]


def test_integers_of_numpy():
    W = torch.randn(40, 30)
    plain = randomized_svd(W, 3, 4, 1, 7)
    assert torch.equal(plain.S, randomized_svd(W, *map(np.int64, (3, 4, 1, 7))).S)
    assert torch.equal(SpectralBasis.of(W, np.int64(3), randomized=True).S, SpectralBasis.of(W, 3, randomized=True).S)


def test_bad_matrices_are_refused():
    with pytest.raises(ValueError, match="NaN or Inf"):
        randomized_svd(torch.full((4, 4), torch.nan), 1)
    with pytest.raises(ValueError, match=r"overflows torch\.float32"):
        randomized_svd(torch.full((40, 40), 3e38), 2)
    with pytest.raises(TypeError, match="real, non-empty"):
        randomized_svd(torch.ones(4, 4, dtype=torch.int32), 1)
