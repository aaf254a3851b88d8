"""csrc/small_svd.cu itself, compiled for the CPU beside an emulation of what CUDA gives it (emulation/)."""

import ctypes

import pytest
import torch

from bench.decompositions import matrix, spectrum
from python_tests.csrc.emulate import compiled
from python_tests.csrc.reference import factors, sweeps
from python_tests.linalg.truth import defect, reconstruction

# bytes of shared memory that a block may have
HOPPER, SMALL = 232_448, 101_376


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    return compiled("small_svd", tmp_path_factory.mktemp("emulation"))


@pytest.fixture
def decompose(library):
    """The operator as its Python caller calls it, into memory that holds something else."""

    def call(A, most=40, memory=HOPPER, major=9, ptx=90, backwards=False):
        library.emulate(memory, major, ptx, backwards)
        A, (count, k, _) = A.contiguous(), A.shape
        out = [torch.full_like(A, 7), torch.full((count, k), 7.0), torch.full_like(A, 7)]
        taken = torch.full((count,), 7, dtype=torch.int32)
        pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (A, *out, taken)]
        error = library.small_svd(*pointers, count, k, most)
        if error:
            raise ValueError(error)
        return *out, taken

    return call


def check(A, U, S, Vh, taken):
    """Every matrix against float64 and torch's float32."""
    assert (taken > 0).all()
    truth, own = torch.linalg.svdvals(A.double()), torch.linalg.svdvals(A)
    assert (S.diff(dim=-1) <= 0).all() and (S >= 0).all()
    # as good as torch's, or to the rounding of the largest where there is nothing to be relative to
    allowed = 3 * (own - truth).abs() + 3e-6 * truth + 1e-7 * truth[..., :1]
    assert ((S - truth).abs() <= allowed).all()
    for one in range(len(A)):
        assert max(defect(U[one]), defect(Vh[one].T)) <= 5e-6
        assert reconstruction(A[one], U[one], S[one], Vh[one]) <= 3e-6 or not A[one].any()


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 17, 32, 33, 64])
def test_random_matrices(decompose, k):
    A = torch.randn(3, k, k)
    check(A, *decompose(A))


@pytest.mark.parametrize("k, memory", [(100, SMALL), (98, 32_000), (130, HOPPER)], ids=str)
def test_long_rows_and_clusters(decompose, k, memory):
    # two blocks, four blocks, and one with more panels than warps
    A = matrix(k, k, spectrum("linear", k, 1e3)).unsqueeze(0)
    check(A, *decompose(A, memory=memory))


# on both sides of where rows grow by a column of warps, or the cluster
EDGES = [(159, 1), (160, 1), (161, 2), (224, 2), (225, 4), (255, 4), (256, 4)]


@pytest.mark.parametrize(
    "k, memory, blocks",
    [(34, HOPPER, 1), (100, SMALL, 2), (98, 32_000, 4), *((k, HOPPER, blocks) for k, blocks in EDGES)],
)
def test_sweep_by_sweep(decompose, k, memory, blocks):
    """After each sweep what the reference has in float64: the same rotations in the same order."""
    # rows of almost the same norm may turn either way, and take all others along
    A = torch.randn(k, k) * torch.logspace(0, -2, k).unsqueeze(-1)
    A /= A.abs().max()
    for most, state in zip((1, 2) if k < 90 else (1,), sweeps(A.double(), blocks)):
        U, S, Vh, taken = decompose(A.unsqueeze(0), most=most, memory=memory)
        assert taken == 0
        _, truth, _ = factors(state)
        # another order is off by 1e-3 and more
        assert (S[0] - truth).abs().median() < 1e-5 * truth[0]
        assert reconstruction(A, U[0], S[0], Vh[0]) < 1e-6


def degenerate():
    k = 24
    low = torch.randn(k, 5) @ torch.randn(5, k)
    gap = torch.zeros(k, k)
    gap[3, 7], gap[20, 1] = 2.0, 1e-3
    yield "zero", torch.zeros(k, k)
    yield "identity", torch.eye(k)
    yield "equal values, any basis", torch.linalg.qr(torch.randn(k, k)).Q
    yield "rank 5", low
    yield "equal rows", torch.ones(k, k)
    yield "two entries", gap
    yield "rows and columns of zero", torch.nn.functional.pad(torch.randn(9, 11), (0, k - 11, 0, k - 9))
    yield "condition 1e5", matrix(k, k, spectrum("log", k))
    yield "triangular", torch.triu(torch.randn(k, k))
    yield "huge", torch.randn(k, k) * 1e37
    yield "tiny", torch.randn(k, k) * 1e-36
    yield "subnormal", torch.randn(k, k) * 1e-43


@pytest.mark.parametrize("A", [pytest.param(A, id=name) for name, A in degenerate()])
def test_degenerate_matrices(decompose, A):
    U, S, Vh, taken = decompose(A.unsqueeze(0))
    scale = A.abs().max().double() or torch.ones(())
    if scale < 1e-30:
        # its own singular values have few bits
        assert taken > 0 and max(defect(U[0]), defect(Vh[0].T)) <= 5e-6
        truth = torch.linalg.svdvals(A.double())
        assert (S[0] - truth).abs().max() <= 3e-6 * truth[0] + 2.0**-149
    else:
        check((A / scale).float().unsqueeze(0), U, (S / scale).float(), Vh, taken)


def test_zeros_in_a_cluster(decompose):
    A = torch.zeros(1, 97, 97)
    A[0, :50, :60] = torch.randn(50, 60)
    check(A, *decompose(A, memory=SMALL))


def test_small_values_of_a_graded_matrix_are_right_to_a_rounding(decompose):
    k = 40
    X = torch.randn(k, k, dtype=torch.float64) + 8 * torch.eye(k, dtype=torch.float64)
    A = (torch.logspace(0, -12, k, dtype=torch.float64).unsqueeze(-1) * X).float()
    truth = factors(list(sweeps(A.double() / A.abs().max()))[-1])[1] * A.abs().max()
    _, S, _, _ = decompose(A.unsqueeze(0))
    assert ((S[0] - truth) / truth).abs().max() < 3e-6


def test_eigenvectors_of_a_positive_semidefinite_matrix(decompose):
    X = torch.randn(20, 30)
    A = X @ X.T
    U, S, Vh, _ = decompose(A.unsqueeze(0))
    assert (U[0] - Vh[0].T).abs().max() < 1e-4
    assert (A @ U[0] - U[0] * S[0]).norm() <= 3e-6 * A.norm()


@pytest.mark.parametrize("k, memory", [(20, HOPPER), (97, SMALL)])
def test_what_is_not_finite_is_flagged_and_the_others_are_not_touched(decompose, k, memory):
    A = torch.randn(3, k, k)
    clean = decompose(A[:1], memory=memory)
    A[1, k - 1, 2], A[2, 0, 0] = torch.nan, -torch.inf
    U, S, Vh, taken = decompose(A, memory=memory)
    assert taken.tolist() == [clean[3].item(), -1, -1]
    for factor, first in zip((U, S, Vh), clean):
        assert factor[1:].isnan().all() and torch.equal(factor[:1], first)


def test_sweeps_are_bounded(decompose):
    A = torch.randn(1, 16, 16)
    U, S, Vh, taken = decompose(A, most=2)
    assert taken == 0
    # what it has is a decomposition of A but for the orthogonality of Vh
    assert defect(U[0]) < 1e-6 and reconstruction(A[0], U[0], S[0], Vh[0]) < 1e-6


@pytest.mark.parametrize("k, memory", [(37, HOPPER), (97, SMALL)])
def test_the_order_of_threads_changes_no_bit(decompose, k, memory):
    A = torch.randn(1, k, k)
    A[0, k // 2] = A[0, 0]
    forwards, backwards = (decompose(A, most=3, memory=memory, backwards=order) for order in (False, True))
    assert all(torch.equal(one, other) for one, other in zip(forwards, backwards))


def test_limits(library, decompose):
    def limit(memory, major, ptx=90):
        library.emulate(memory, major, ptx, False)
        return library.small_svd_limit()

    # an H100; an A100; a GPU with little shared memory, without clusters and with them
    assert limit(HOPPER, 9) == 256
    assert limit(166_912, 8) == 128
    assert limit(SMALL, 8) == 96
    assert limit(SMALL, 12) == 256
    with pytest.raises(ValueError):
        decompose(torch.randn(1, 129, 129), memory=166_912, major=8)
    with pytest.raises(ValueError):
        decompose(torch.randn(1, 257, 257))
    # code of an A100 that a Hopper's driver compiled anew
    assert limit(HOPPER, 9, ptx=80) == 160
    with pytest.raises(ValueError):
        decompose(torch.randn(1, 161, 161), ptx=80)


def test_a_question_that_cuda_does_not_answer_is_an_error(library, decompose):
    library.emulate(-1, 9, 90, False)
    assert library.small_svd_limit() == -100
    with pytest.raises(ValueError, match="100"):
        decompose(torch.randn(1, 4, 4), memory=-1)
