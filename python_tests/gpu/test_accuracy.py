import pytest
import torch

from python_tests.gpu.weights import BF16, FP16, FP32, PAIRS, RAGGED, SHAPES, TRUNCATED, draw
from python_tests.oracle import by_triton, diagonal, double, error, two_products

MODES = ["drop", "keep"]
# rows off 16 bytes are kernels of their own, of which each of these is two: every pair of dtypes once
UNALIGNED = {
    (17, 33): [(FP32, FP16), (BF16, BF16)],
    (256, 1, 64): [(FP16, FP16), (FP32, BF16)],
    (130, 257): [(BF16, FP16), (FP16, BF16)],
    (1999, 777): [(BF16, FP16), (BF16, FP16)],
}
# the variants of the check at attach() are met by TMA; around cuBLAS gradients in fp16 would be three variants more
BACKENDS = {pair: ("triton", "cublas") for pair in PAIRS if pair[0] != FP16}
BACKENDS |= dict.fromkeys([(BF16, FP16), (FP32, FP16)], ("triton", "cublas", "tma"))
CASES = [(shape, mode, pair) for shape in RAGGED if shape not in UNALIGNED for mode in MODES for pair in PAIRS]
CASES += [(shape, mode, pair) for shape, pairs in UNALIGNED.items() for mode, pair in zip(MODES, pairs)]


def step(G, basis, rho, mode, out=None, backend="triton"):
    out = torch.full_like(G, torch.nan) if out is None else out
    return by_triton(G, basis, rho, mode, out, backend), out


@pytest.fixture
def check(as_good):
    """g, and the step from g to G' apart, beside torch in the basis's dtype on the operands as stored."""

    def check(G, basis, mode, rho=0.5, backend="triton"):
        g, out = step(G, basis, rho, mode, backend=backend)
        U, S, Vh, G64 = double(basis.U, basis.S, basis.Vh, G)
        stored = basis.U.dtype
        as_good("g", g, diagonal(G64, U, Vh), diagonal(G.to(stored), basis.U, basis.Vh), 1e-5)
        truth = two_products(G64, g.double(), U, S, Vh, rho, mode)
        same = two_products(G.to(stored), g.to(stored), basis.U, basis.S.to(stored), basis.Vh, rho, mode)
        # both are rounded to the dtype of G' at the end
        as_good("G'", out, truth, same.to(G.dtype), 1e-5)

    return check


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes_of_models(check, shape, mode, pair):
    basis, G = draw(shape, *pair)
    for backend in BACKENDS.get(pair, ("triton",)):
        check(G, basis, mode, backend=backend)


@pytest.mark.parametrize("shape, mode, pair", CASES, ids=str)
def test_ragged(check, shape, mode, pair):
    basis, G = draw(shape, *pair)
    # the other ways are met aligned
    for backend in ("triton",) if shape in list(UNALIGNED)[:3] else BACKENDS.get(pair, ("triton",)):
        check(G, basis, mode, backend=backend)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", TRUNCATED, ids=str)
def test_truncated(check, shape, mode):
    basis, G = draw(shape, BF16, FP16, rank=256)
    check(G, basis, mode)


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e30])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(512, 512), (768, 256), (256, 768)], ids=str)
def test_any_magnitude_fits_fp16(record, shape, mode, scale):
    basis, G = draw(shape, FP32, FP16, scale=scale)
    g, out = step(G, basis, 0.5, mode)
    U, S, Vh, G64 = double(basis.U, basis.S, basis.Vh, G)
    truth = two_products(G64 / scale, g.double() / scale, U, S, Vh, 0.5, mode)
    errors = {"g": error(g.double() / scale, diagonal(G64, U, Vh) / scale), "G'": error(out.double() / scale, truth)}
    for what, found in errors.items():
        record(what, count=G.numel(), error=f"{found:.3e}")
    assert max(errors.values()) < torch.finfo(FP16).eps


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(2, 256, 256), (2, 384, 128), (2, 128, 384)], ids=str)
def test_what_is_not_finite_comes_back(shape, mode, wrong):
    basis, G = draw(shape, BF16, FP16)
    _, right = step(G, basis, 0.5, mode)
    G[0, 3, 17] = wrong
    g, out = step(G, basis, 0.5, mode)
    assert g.isfinite().all(-1).tolist() == [False, True]
    torch.testing.assert_close(out[0], G[0], rtol=0, atol=0, equal_nan=True)
    assert torch.equal(out[1], right[1])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(1024, 1024), (1024, 512), (512, 1024)], ids=str)
def test_in_place_is_the_same_and_unaligned_differs_by_roundings(shape, mode):
    basis, G = draw(shape, BF16, FP16)
    _, right = step(G, basis, 0.5, mode)
    unaligned = torch.empty(G.numel() + 1, dtype=G.dtype)[1:].view(shape).copy_(G)
    step(unaligned, basis, 0.5, mode, out=unaligned)
    # the two variants add the rows of a tile in different orders
    assert error(unaligned, right) < 1e-3
    step(G, basis, 0.5, mode, out=G)
    assert torch.equal(G, right)


def test_rho_zero_is_the_identity():
    basis, G = draw((1024, 512), BF16, FP16)
    assert torch.equal(step(G, basis, 0.0, "keep")[1], G)
