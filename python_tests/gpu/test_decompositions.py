import pytest
import torch

from bench.decompositions import exact_errors, matrix, peer, remainder, spectrum
from gsr_kernels.backends.torch import sketch as plain
from gsr_kernels.backends.triton import sketch as kernel
from gsr_kernels.linalg import randomized_svd, svd
from gsr_kernels.linalg.side_by_side import ARRANGEMENTS, bases_of


@pytest.mark.parametrize("kind", ["gaussian", "sparse"])
def test_omega_is_that_of_a_cpu_to_the_bit(record, kind):
    for rows, width in ((2048, 512), (1999, 77)):
        # one number times one, summed with zeros, is that number
        found = kernel.sketch(torch.eye(rows), width, 2**40 + 7, kind)
        record(f"{kind} {rows} x {width}", count=found.numel())
        assert torch.equal(found.cpu(), plain.omega(rows, width, 2**40 + 7, kind, "cpu"))


@pytest.mark.parametrize("driver", ["polar", "gesvdj"])
@pytest.mark.parametrize("kind", ["log", "linear"])
@pytest.mark.parametrize("shape", [(1024, 1024), (2048, 512), (384, 1536)], ids=str)
def test_exact(record, shape, kind, driver):
    for condition in (1e2, 1e5):
        W = matrix(*shape, spectrum(kind, min(shape), condition))
        truth = torch.linalg.svdvals(W.double())
        own = ((torch.linalg.svd(W, full_matrices=False).S - truth) / truth).abs().max().item()
        errors = exact_errors(W, truth, *svd(W, driver))
        found = f"{errors['sigma_error']:.3e}"
        record(f"sigma, {kind} {condition:.0e}", count=len(truth), error=found, torch_error=f"{own:.3e}")
        assert errors["orthogonality"] <= 1e-5 and errors["residual"] <= 5e-6
        # of a linear spectrum one σ decides, and torch may be lucky with it
        assert kind == "linear" or errors["sigma_error"] <= 3 * own


@pytest.mark.parametrize("kind", ["flat", "decaying"])
@pytest.mark.parametrize("rank", [256, 64])
def test_randomized(record, kind, rank):
    S = spectrum(kind, 1024)
    W = matrix(2048, 1024, S)
    U, sigma, Vh, estimate = randomized_svd(W, rank)
    error, best = remainder(W, U, sigma, Vh), S[rank].item()
    theirs = remainder(W, *peer(W, rank))
    record(f"{kind} {rank}", count=rank, error=f"{error / best:.4f}", torch_error=f"{theirs / best:.4f}")
    assert error <= 1.05 * best and error <= 1.001 * theirs
    assert 0.9 * error <= estimate.item() <= 1.01 * error


@pytest.mark.parametrize("sketch", [None, 64])
def test_side_by_side(record, sketch):
    weights = [torch.randn(shape) for shape in [(512, 512)] * 12 + [(1024, 512)] * 12 + [(300, 700)] * 12]
    alone = bases_of(weights, sketch, "1")
    for arrangement in (*ARRANGEMENTS[1:], None):
        found = bases_of(weights, sketch, arrangement)
        # on the stream of the caller, at once
        worst = max(torch.dist(a.S, b.S).item() / a.S.norm().item() for a, b in zip(alone, found))
        record(f"{arrangement or 'as chosen'}, sketch {sketch}", count=len(weights), error=f"{worst:.3e}")
        assert worst <= 1e-5
        if arrangement == "4":
            assert all(torch.equal(a.U, b.U) and torch.equal(a.Vh, b.Vh) for a, b in zip(alone, found))


def test_weights_that_are_still_written_and_memory_that_is_used_again(record):
    halves = [torch.randn(512, 512) for _ in range(12)]
    alone = bases_of([2 * half for half in halves], None, "1")
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        # long enough for one that does not wait to meet what was there before
        torch.cuda._sleep(10**8)
        weights = [2 * half for half in halves]
        found = bases_of(weights, None, "4")
        del weights
        again = [torch.full((512, 512), torch.nan) for _ in range(48)]
        equal = [torch.equal(a.U, b.U) and torch.equal(a.S, b.S) for a, b in zip(alone, found)]
    record("on a caller's own stream", count=len(again))
    assert all(equal)


def test_more_calls_leave_no_more_than_workspaces(record):
    weights, left = [torch.randn(512, 512) for _ in range(12)], []
    for _ in range(12):
        bases_of(weights, None, "4")
        torch.cuda.synchronize()
        left.append(torch.cuda.memory_allocated())
    record("bytes left by twelve calls beyond those of the first", count=len(left), error=left[-1] - left[0])
    # cuBLAS keeps one, of up to 32 MiB, for each of four handles on each of four streams
    assert left[-1] - left[0] <= 16 << 25


def test_a_batch_with_a_zero_matrix_and_directions_near_rounding():
    S = torch.ones(256, dtype=torch.float64)
    S[-1] = 2e-7
    W = torch.stack([matrix(256, 256, S), torch.zeros(256, 256), torch.randn(256, 256)])
    for one, U, sigma, Vh in zip(W, *svd(W, "polar")):
        rebuilt = (U * sigma) @ Vh
        identity = torch.eye(256)
        assert torch.dist(rebuilt, one) <= 5e-6 * one.norm()
        assert (U.mT @ U - identity).abs().max() <= 1e-5 and (Vh @ Vh.mT - identity).abs().max() <= 1e-5
