import pytest
import torch

from bench.decompositions import matrix, spectrum
from gsr_kernels import ops
from gsr_kernels.backends import cuda
from gsr_kernels.linalg import svd
from python_tests.linalg.truth import defect


@pytest.fixture(autouse=True)
def serving(on_gpu):
    """Without the extension none of this passes: ``python -m bench.gpu build`` builds it."""
    assert cuda.refusal(torch.device("cuda", torch.cuda.current_device())) == ""


def matrices(k, kind):
    if kind == "zero":
        return torch.zeros(4, k, k)
    if kind == "ties":
        return torch.linalg.qr(torch.randn(4, k, k)).Q.contiguous()
    if kind == "low rank":
        return torch.randn(4, k, (k + 2) // 3) @ torch.randn(4, (k + 2) // 3, k)
    if kind == "random":
        # the truths of large ones take long
        return torch.randn(126 if k <= 64 else 4, k, k)
    with torch.device("cpu"):
        made = torch.stack([matrix(k, k, spectrum(kind, k, 1e5)) for _ in range(4)])
    return made.cuda()


@pytest.mark.parametrize("kind", ["random", "log", "linear", "ties", "zero", "low rank"])
@pytest.mark.parametrize("k", [1, 2, 31, 64, 128, 159, 160, 161, 200, 224, 225, 255, 256])
def test_against_float64(record, k, kind):
    A = matrices(k, kind)
    U, S, Vh, sweeps = ops.small_svd(A, backend="cuda")
    truth, own = torch.linalg.svdvals(A.double()), torch.linalg.svd(A).S
    rebuilt = (U.double() * S.double().unsqueeze(-2)) @ Vh.double()
    residual = (A - rebuilt).norm() / A.double().norm().clamp(min=1e-30)
    orthogonality = max(defect_of(U), defect_of(Vh.mT))
    # where σ is a rounding of the largest there is nothing to be relative to
    floor = truth.clamp(min=1e-6 * truth.amax()).clamp(min=1e-30)
    found, theirs = (((one - truth).abs() / floor).max().item() for one in (S, own))
    record(f"sigma, {kind} {k}", count=len(A), error=f"{found:.3e}", torch_error=f"{theirs:.3e}")
    record(f"orthogonality, {kind} {k}, at most {sweeps.max().item()} sweeps", error=f"{orthogonality:.3e}")
    assert (sweeps > 0).all() and residual < 5e-6 and orthogonality <= 5e-6
    assert found <= max(3 * theirs, 3e-6)


def defect_of(Q):
    return max(defect_one(one) for one in Q)


def defect_one(Q):
    with torch.device(Q.device):
        return defect(Q)


@pytest.mark.parametrize("k", [64, 256])
def test_a_thousand_repeats_are_the_same_to_the_bit(record, k):
    A = torch.randn(8, k, k)
    first = ops.small_svd(A, backend="cuda")
    for _ in range(1000):
        assert all(torch.equal(one, other) for one, other in zip(first, ops.small_svd(A, backend="cuda")))
    record(f"bitwise repeats, k = {k}", count=1000)
    # a matrix does not depend on those beside it
    alone = ops.small_svd(A[3:4], backend="cuda")
    assert all(torch.equal(one[3:4], other) for one, other in zip(first, alone))


def test_any_strides_and_streams():
    A = torch.randn(3, 40, 40)
    expected = ops.small_svd(A.mT.contiguous(), backend="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = ops.small_svd(A.mT, backend="cuda")
    stream.synchronize()
    assert all(torch.equal(one, other) for one, other in zip(expected, found))


def test_what_is_not_finite():
    A = torch.randn(3, 200, 200)
    A[1, 7, 9], A[2, 199, 199] = torch.nan, torch.inf
    *factors, sweeps = ops.small_svd(A, backend="cuda")
    assert sweeps[0] > 0 and sweeps[1:].tolist() == [-1, -1]
    assert all(factor[1:].isnan().all() and factor[0].isfinite().all() for factor in factors)


def test_beyond_the_limit():
    A = torch.randn(1, 257, 257)
    with pytest.raises(ValueError, match="backend='cuda' takes k up to 256"):
        ops.small_svd(A, backend="cuda")
    U, S, Vh, _ = ops.small_svd(A)
    assert torch.allclose((U * S.unsqueeze(-2)) @ Vh, A, atol=1e-4)


def test_opcheck_and_a_graph():
    A = torch.randn(2, 30, 30)
    assert set(torch.library.opcheck(ops._small_svd, (A, "cuda")).values()) == {"SUCCESS"}
    expected = ops.small_svd(A, backend="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = ops.small_svd(A, backend="cuda")
    graph.replay()
    assert all(torch.equal(one, other) for one, other in zip(expected, found))


@pytest.mark.parametrize("shape", [(4, 96, 2048), (1024, 200), (128, 128)], ids=str)
def test_the_driver(as_good, shape):
    W = torch.randn(shape)
    truth = torch.linalg.svdvals(W.double())
    as_good(f"svd by jacobi {shape}", svd(W, "jacobi").S, truth, torch.linalg.svdvals(W), 1e-6)
