"""The exact SVD against float64, each driver by name; what takes over when one fails; what is refused."""

import sys
import warnings

import pytest
import torch

from bench.decompositions import matrix, spectrum
from gsr_kernels.linalg import svd
from python_tests.linalg.truth import defect, reconstruction

DRIVERS = ("gram", "gesdd", "polar", "float64")
module = sys.modules["gsr_kernels.linalg.svd"]


def sigma_error(W, S):
    """Return the largest relative error of σ."""
    truth = torch.linalg.svdvals(W.double())
    return ((S - truth) / truth).abs().max().item()


@pytest.fixture(autouse=True)
def no_driver_gives_way():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("shape", [(256, 256), (512, 128), (128, 300)])
@pytest.mark.parametrize("kind", ["log", "linear"])
def test_factors_are_orthonormal_and_reconstruct(shape, kind):
    for condition in (1e2, 1e5):
        W = matrix(*shape, spectrum(kind, min(shape), condition))
        for driver in DRIVERS:
            U, S, Vh = svd(W, driver)
            assert U.dtype == S.dtype == Vh.dtype == torch.float32
            assert defect(U) <= 1e-5 and defect(Vh.mT) <= 1e-5
            assert reconstruction(W, U, S, Vh) <= 5e-6
            assert (S[1:] <= S[:-1]).all() and (S >= 0).all()


@pytest.mark.parametrize("kind", ["log", "linear"])
@pytest.mark.parametrize("condition", [1e2, 1e3, 1e4, 1e5])
def test_polar_singular_values_are_as_right_as_those_of_lapack(kind, condition):
    worst = {"polar": 0.0, "torch": 0.0}
    # the worst of several: one matrix may be lucky in either
    for _ in range(4):
        W = matrix(160, 128, spectrum(kind, 128, condition))
        for name, S in (("polar", svd(W, "polar").S), ("torch", torch.linalg.svd(W).S)):
            worst[name] = max(worst[name], sigma_error(W, S))
    assert worst["polar"] <= 3 * worst["torch"]


@pytest.mark.parametrize("shape", [(512, 512), (300, 160), (160, 300)])
@pytest.mark.parametrize("kind", ["log", "linear"])
def test_small_singular_values_are_right_to_the_last_one(shape, kind):
    for condition, bound in ((1e2, 1e-5), (1e3, 3e-5), (1e4, 3e-5), (1e5, 3e-4)):
        W = matrix(*shape, spectrum(kind, min(shape), condition))
        assert sigma_error(W, svd(W).S) <= bound


@pytest.mark.parametrize("n", [26, 40, 100])
def test_of_a_graded_diagonal_each_direction_is_exact(n):
    W = torch.diag(torch.logspace(0, -12, n, dtype=torch.float64)).float()
    batch = torch.stack([W, W.flip(0), torch.zeros(n, n), W[torch.randperm(n)][:, torch.randperm(n)], torch.eye(n)])
    U, S, Vh = svd(batch)
    for index in (0, 1, 3):
        torch.testing.assert_close(S[index], W.diagonal(), rtol=1e-6, atol=0)
        along = (U[index] * (batch[index] @ Vh[index].mT)).sum(0)
        torch.testing.assert_close(along, W.diagonal(), rtol=1e-5, atol=0)
    assert (S[2] == 0).all() and (S[4] == 1).all() and defect(U) <= 1e-5


def test_values_that_lapack_takes_for_equal_are_told_apart():
    near = 2e-3 * (1 + 1e-4 * torch.arange(64, dtype=torch.float64).flip(0) / 64)
    W = matrix(128, 128, torch.cat([torch.linspace(1, 0.1, 64, dtype=torch.float64), near]))
    assert sigma_error(W, torch.linalg.svd(W).S) > 2e-5 > 2 * sigma_error(W, svd(W).S)


def test_what_rounding_has_made_is_zero():
    W = torch.randn(96, 10) @ torch.randn(10, 80)
    assert (svd(W).S > 0).sum() == 10
    # a direction that is near to it is none of them
    W = matrix(64, 64, torch.cat([torch.ones(63), torch.tensor([1e-6])]).double())
    assert sigma_error(W, svd(W).S) <= 1e-6


def test_a_wide_matrix_is_lapacks_as_it_lies():
    for shape in ((96, 300), (3, 40, 44)):
        W = torch.randn(shape)
        # scaling is by a power of two
        assert all(map(torch.equal, svd(W, "gesdd"), torch.linalg.svd(W, full_matrices=False)))


def test_what_has_no_full_rank_is_completed():
    duplicates = torch.randn(96, 64)
    duplicates[:, 10] = duplicates[:, 20] = duplicates[:, 3]
    square = torch.randn(64, 64)
    square[:, 7] = square[:, 3]
    product = torch.randn(128, 10) @ torch.randn(10, 96)
    for W in (duplicates, square, product, torch.zeros(40, 24), torch.zeros(5, 5)):
        rank = int(torch.linalg.matrix_rank(W.double()))
        for driver in DRIVERS:
            U, S, Vh = svd(W, driver)
            assert defect(U) <= 1e-5 and defect(Vh.mT) <= 1e-5
            assert torch.dist(U * S @ Vh, W) <= 5e-6 * W.norm()
            assert (S[rank:] <= 1e-5 * S[0]).all()


def test_directions_near_the_rounding_of_the_largest_are_completed():
    for sigma in torch.logspace(-8, -6, 60).tolist():
        S = torch.ones(96, dtype=torch.float64)
        S[-1] = sigma
        for W in (matrix(96, 96, S), torch.diag(S).float()):
            U, _, Vh = svd(W, "polar")
            assert defect(U) <= 1e-5 and defect(Vh.mT) <= 1e-5


def test_a_zero_matrix_costs_the_others_of_its_batch_nothing():
    W = torch.stack([matrix(96, 96, spectrum("log", 96, 1e5)) for _ in range(4)])
    truth = torch.linalg.svdvals(W.double())
    mixed = svd(torch.cat([torch.zeros(1, 96, 96), W]), "polar").S
    assert mixed[0].eq(0).all()
    worst = [((S - truth) / truth).abs().max() for S in (mixed[1:], torch.linalg.svd(W).S)]
    assert worst[0] <= 3 * worst[1]


@pytest.mark.parametrize("shape", [(1, 50), (50, 1), (1, 1), (3, 2)])
@pytest.mark.parametrize("scale", [1, 1e30, 1e-30])
def test_thin_huge_and_tiny(shape, scale):
    W = torch.randn(shape) * scale
    for driver in DRIVERS:
        U, S, Vh = svd(W, driver)
        assert defect(U) <= 1e-5 and defect(Vh.mT) <= 1e-5
        assert reconstruction(W, U, S, Vh) <= 5e-6


def test_batches_are_the_matrices_one_by_one():
    W = torch.randn(2, 3, 24, 40)
    W[1, 1] = 0
    for driver in DRIVERS:
        U, S, Vh = svd(W, driver)
        assert U.shape == (2, 3, 24, 24) and S.shape == (2, 3, 24) and Vh.shape == (2, 3, 24, 40)
        torch.testing.assert_close(S[0, 2], svd(W[0, 2], driver).S, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(U * S.unsqueeze(-2) @ Vh, W, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(4 * 10**5, 1), (2**20, 1), (2**20, 3)])
def test_long_thin_matrices(shape):
    # what a check that sums 10^6 rows in one go took for a fault
    W = torch.rand(shape)
    for driver in ("gram", "gesdd", "float64"):
        U, S, Vh = svd(W, driver)
        assert defect(U) <= 1e-5 and reconstruction(W, U, S, Vh) <= 5e-6
        torch.testing.assert_close(S.double(), torch.linalg.svdvals(W.double()), rtol=1e-5, atol=0)


@pytest.mark.parametrize("shape", [(1, 4 * 10**5), (3, 2**20)])
def test_long_flat_matrices_that_lapack_errs_on(shape):
    W = torch.rand(shape)
    with pytest.warns(UserWarning, match="gram takes over"):
        found = svd(W, "gesdd")
    for U, S, Vh in (found, svd(W)):
        assert defect(Vh.mT) <= 1e-6 and reconstruction(W, U, S, Vh) <= 1e-6


def test_dtypes():
    W = torch.randn(40, 30, dtype=torch.float64)
    for driver in DRIVERS:
        if driver != "gram":
            assert reconstruction(W, *svd(W, driver)) < 1e-13
        assert reconstruction(W.bfloat16().float(), *svd(W.bfloat16(), driver)) < 5e-6
    with pytest.raises(ValueError, match="gesdd, float64, polar on cpu, got 'gram'"):
        svd(W, "gram")


def test_lower_matmul_precision_does_not_reach_it_and_stays_set():
    W = matrix(128, 128, spectrum("log", 128, 1e3))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert reconstruction(W, *svd(W, "polar")) <= 5e-6
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("spoil", ["raise", "nan"])
def test_a_driver_that_fails_its_probe_is_not_the_fastest(monkeypatch, spoil):
    def drive(W, driver):
        if driver == "gesvdj" and spoil == "raise":
            raise RuntimeError("driver= is only supported with cuSOLVER")
        U, S, Vh = torch.linalg.svd(W, full_matrices=False)
        return module.SVD(U * torch.nan if driver == "gesvdj" else U, S, Vh)

    monkeypatch.setattr(module, "_drive", drive)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    assert module._seconds(torch.device("cpu"), "gesvdj", 16) == float("inf")
    assert module._seconds(torch.device("cpu"), "polar", 16) < 10


def test_what_does_not_fit_is_not_tried_otherwise(monkeypatch):
    def drive(W, driver):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module, "_drive", drive)
    with pytest.raises(torch.OutOfMemoryError):
        svd(torch.randn(4, 4))


@pytest.mark.parametrize("spoil", ["nan", "rotated", "raise", "runtime"])
def test_the_next_driver_takes_over_for_what_fails_and_says_so(monkeypatch, spoil):
    W = torch.randn(3, 20, 16)
    drive = module._drive

    def spoilt(matrices, driver):
        if driver != "gram":
            return drive(matrices, driver)
        if spoil == "raise":
            raise torch.linalg.LinAlgError("did not converge")
        if spoil == "runtime":
            raise RuntimeError("cusolver error")
        result = drive(matrices, driver)
        if spoil == "nan":
            result.U[1, 0, 0] = torch.nan
        else:
            result.Vh[1] = result.Vh[1].flip(0)
        return result

    monkeypatch.setattr(module, "_drive", spoilt)
    failed = 3 if spoil in ("raise", "runtime") else 1
    with pytest.warns(UserWarning, match=f"gram failed its checks on {failed} of 3 matrices 20x16; gesdd takes over"):
        result = svd(W)
    assert reconstruction(W, *result) < 5e-6


def wrong_column(U, S, Vh):
    U[..., 3] = torch.nn.functional.normalize(torch.randn(U.shape[:-1]), dim=-1)


def equal_columns(U, S, Vh):
    U[..., 3] = U[..., 4]


def longer_row(U, S, Vh):
    Vh[..., 5, :] *= 1.01


def other_sign(U, S, Vh):
    Vh[..., 0, :] *= -1


def another_space(U, S, Vh):
    Vh.copy_(torch.linalg.qr(torch.randn_like(Vh).mT).Q.mT)


def swapped(U, S, Vh):
    S[..., [0, -1]] = S[..., [-1, 0]]


def wrong_sigma(U, S, Vh):
    S[..., 2] *= 1.01


def negative(U, S, Vh):
    S[...], U[...] = -S, -U


def ascending(U, S, Vh):
    S[...], U[...], Vh[...] = S.flip(-1), U.flip(-1), Vh.flip(-2)


def nan(U, S, Vh):
    S[..., -1] = torch.nan


def infinite(U, S, Vh):
    S[..., -1] = torch.inf


@pytest.mark.parametrize("shape", [(48, 48), (96, 32), (32, 96), (20000, 8)], ids=str)
@pytest.mark.parametrize(
    "fault",
    [
        *(wrong_column, equal_columns, longer_row, other_sign, another_space, swapped, wrong_sigma),
        *(negative, ascending, nan, infinite),
    ],
)
def test_the_checks_find_what_is_wrong_and_nothing_else(shape, fault):
    m, n = shape
    W = torch.randn(4, m, n)
    W[3] = 0
    for mirrored in (False, True):
        U, S, Vh = torch.linalg.svd(W.mT if mirrored else W, full_matrices=False)
        matrices, factors = (W, [Vh.mT, S, U.mT]) if mirrored else (W, [U, S, Vh])
        assert module._sound(matrices, module.SVD(*factors)).all()
        # in the second of the batch
        fault(U[1], S[1], Vh[1])
        assert module._sound(matrices, module.SVD(*factors)).tolist() == [True, False, True, True]


def test_no_result_is_better_than_a_wrong_one(monkeypatch):
    drive = module._drive
    monkeypatch.setattr(module, "_drive", lambda W, driver: module.SVD(*(2 * factor for factor in drive(W, driver))))
    with (
        pytest.warns(UserWarning, match="takes over"),
        pytest.raises(torch.linalg.LinAlgError, match="1 of 1 matrices 20x16"),
    ):
        svd(torch.randn(20, 16))


def test_bad_input_is_refused():
    for value in (torch.nan, torch.inf):
        W = torch.randn(4, 3)
        W[1, 2] = value
        with pytest.raises(ValueError, match="NaN or Inf"):
            svd(W)
    for W in (torch.ones(3), torch.ones(3, 3, dtype=torch.int64), torch.ones(0, 3), torch.ones(2, 2).cfloat()):
        with pytest.raises(TypeError, match="real, non-empty floating-point matrix"):
            svd(W)
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        with pytest.raises(TypeError, match="of 16 bits or more"):
            svd(torch.ones(3, 3).to(dtype))
    for driver in DRIVERS:
        with pytest.raises(ValueError, match=r"overflows torch\.float32: pass W in float64"):
            svd(torch.full((4, 4), 3e38), driver)
    with pytest.raises(ValueError, match="gram, gesdd, float64, polar on cpu, got 'gesvdj'"):
        svd(torch.ones(2, 2), driver="gesvdj")


def test_the_argument_is_left_as_it_was():
    W = torch.randn(30, 20, requires_grad=True)
    before = W.detach().clone()
    for driver in DRIVERS:
        assert not svd(W, driver).U.requires_grad
    assert torch.equal(W, before)
