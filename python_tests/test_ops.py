import pytest
import torch

from gsr_kernels import SpectralBasis, ops, reference, rescale_gradient
from gsr_kernels.backends.torch.rescale_gradient import rescale_gradient as compute
from gsr_kernels.backends.torch.stages import rescale
from python_tests.oracle import assert_as_good, diagonal, double, error, two_products

SHAPES = [(64, 64), (96, 40), (17, 33), (1, 20), (20, 1), (3, 24, 16), (2, 2, 12, 18)]
RHOS = [0.0, 0.5, 1.0]
MODES = ["drop", "keep"]


def basis_and_gradient(shape, dtype, rank=None, W=None):
    W = torch.randn(shape, dtype=dtype) if W is None else W
    return SpectralBasis.of(W, rank=rank), torch.randn(shape, dtype=dtype)


def in_parts(G, basis, rho, out_of_span):
    """g and G' of the torch backend, with the output poisoned."""
    out = torch.full_like(G, torch.nan)
    g = compute(G, basis.U, basis.S, basis.Vh, rho, out_of_span, out)
    return g, out


def errors(G, basis, rho, out_of_span):
    """The errors of g, and of the step from that g to G', each beside torch's own, against float64.

    The step is taken by itself on the g that was found: g' jumps where g changes sign, and the identity's value is
    right for ties too.
    """
    U, S, Vh, G64 = double(basis.U, basis.S, basis.Vh, G)
    g, out = in_parts(G, basis, rho, out_of_span)
    true_g, truth = diagonal(G64, U, Vh), two_products(G64, g.double(), U, S, Vh, rho, out_of_span)
    wide = G.to(basis.U.dtype)
    plain = two_products(wide, g, basis.U, basis.S, basis.Vh, rho, out_of_span).to(G.dtype)
    plain_g = diagonal(wide, basis.U, basis.Vh)
    return (error(g, true_g), error(plain_g, true_g)), (error(out, truth), error(plain, truth))


def assert_parity(G, basis, rho, out_of_span):
    """As good as torch on one draw; in float64 right to 1e-10."""
    eps = torch.finfo(G.dtype).eps
    for ours, plain in errors(G, basis, rho, out_of_span):
        assert ours <= (1e-10 if G.dtype == torch.float64 else max(2 * plain, eps)), f"{ours:.2e}, torch {plain:.2e}"


@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize("out_of_span", MODES)
@pytest.mark.parametrize("rank", [None, 5])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float64_is_the_literal_chain(shape, rank, out_of_span, rho):
    rank = rank and min(rank, *shape[-2:])
    basis, G = basis_and_gradient(shape, torch.float64, rank)
    truth = reference.rescale_gradient(G, basis.U, basis.S, basis.Vh, rho, out_of_span)
    assert error(rescale_gradient(G, basis, rho, out_of_span), truth) < 1e-10


@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize("out_of_span", MODES)
@pytest.mark.parametrize("rank", [None, 5])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_low_precision_is_as_good_as_torch(dtype, shape, rank, out_of_span, rho):
    rank = rank and min(rank, *shape[-2:])
    # of one draw the ratio is luck: on some processors it is above 2 for some seeds, where g happens to be small
    draws = [basis_and_gradient(shape, torch.float32, rank) for _ in range(16)]
    found = [errors(G.to(dtype), basis, rho, out_of_span) for basis, G in draws]
    for ours, plain in torch.tensor(found).median(0).values.tolist():
        assert ours <= max(1.5 * plain, torch.finfo(dtype).eps), f"{ours:.2e}, torch {plain:.2e}"


@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize("out_of_span", MODES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float32_is_as_good_as_the_literal_chain(shape, out_of_span, rho):
    # orthonormal to float32's rounding, which a float32 decomposition is not: that is no error of the operator
    factors = SpectralBasis.of(torch.randn(shape, dtype=torch.float64))
    basis = SpectralBasis(factors.U.float(), factors.S.float(), factors.Vh.float())
    G = torch.randn(shape)
    U, S, Vh, G64 = double(basis.U, basis.S, basis.Vh, G)
    # g' jumps where g changes sign: entries of g within the accumulated rounding of zero would be left out, and counted
    rounding = torch.finfo(torch.float32).eps * sum(shape[-2:]) ** 0.5
    assert int((diagonal(G64, U, Vh).abs() < rounding).sum()) == 0
    truth = reference.rescale_gradient(G64, U, S, Vh, rho, out_of_span)
    literal = reference.rescale_gradient(G, basis.U, basis.S, basis.Vh, rho, out_of_span)
    assert_as_good(rescale_gradient(G, basis, rho, out_of_span), truth, literal)


@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize("scale", [1e25, 1e-25])
@pytest.mark.parametrize("out_of_span", MODES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_extreme_magnitudes(shape, out_of_span, scale, rho):
    basis, G = basis_and_gradient(shape, torch.float32)
    G *= scale
    U, S, Vh, G64 = double(basis.U, basis.S, basis.Vh, G)
    g, out = in_parts(G, basis, rho, out_of_span)
    assert_as_good(g, diagonal(G64, U, Vh), diagonal(G, basis.U, basis.Vh))
    truth = two_products(G64, g.double(), U, S, Vh, rho, out_of_span)
    # torch's own cannot square these in float32: its error is that of the same gradient at an ordinary magnitude
    plain = two_products(G / scale, g / scale, basis.U, basis.S, basis.Vh, rho, out_of_span)
    assert_as_good(out, truth, plain.double() * scale)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("out_of_span", MODES)
@pytest.mark.parametrize("sign", [1, -1, 0], ids=["positive", "negative", "zero"])
def test_one_sign_only(sign, out_of_span, dtype):
    basis = SpectralBasis.of(torch.randn(24, 16, dtype=dtype))
    G = sign * (basis.U * (torch.rand(16, dtype=dtype) + 0.1)) @ basis.Vh
    assert_parity(G, basis, 1.0, out_of_span)


@pytest.mark.parametrize("out_of_span", MODES)
@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_ties_zero_and_rank_deficient_weights(dtype, rho, out_of_span):
    wide = torch.randn(3, 20, dtype=torch.float64)
    weights = [torch.eye(20), torch.zeros(20, 20), wide.mT @ wide, torch.ones(20, 8), torch.diag(torch.arange(20.0))]
    for W in weights:
        basis, G = basis_and_gradient(W.shape, dtype, W=W.to(dtype))
        assert_parity(G, basis, rho, out_of_span)


@pytest.mark.parametrize("heads", [4, (4, 0), (4, 1)], ids=str)
@pytest.mark.parametrize("out_of_span", MODES)
def test_heads_are_matrices_of_their_own(heads, out_of_span):
    W, G = torch.randn(2, 24, 16, dtype=torch.float64)
    rows = heads != (4, 1)
    whole = rescale_gradient(G, SpectralBasis.of(W, heads=heads), 0.7, out_of_span)
    pairs = zip(W.chunk(4, 0 if rows else 1), G.chunk(4, 0 if rows else 1))
    parts = [rescale_gradient(part, SpectralBasis.of(piece), 0.7, out_of_span) for piece, part in pairs]
    assert error(whole, torch.cat(parts, 0 if rows else 1)) < 1e-12


@pytest.mark.parametrize("shape", [(16, 16), (24, 16), (16, 24), (3, 8, 8)], ids=str)
@pytest.mark.parametrize("out_of_span", MODES)
@pytest.mark.parametrize("heads", [None, 2, (2, 1)], ids=str)
def test_in_place_equals_out_of_place_bitwise(shape, out_of_span, heads):
    W, G = torch.randn(2, *shape)
    basis = SpectralBasis.of(W, heads=heads)
    expected = rescale_gradient(G, basis, 0.5, out_of_span)
    assert rescale_gradient(G, basis, 0.5, out_of_span, out=G) is G
    assert torch.equal(G, expected)


def test_a_list_is_its_parts():
    weights = [torch.randn(12, 12), torch.randn(20, 8), torch.randn(8, 20)]
    bases = [SpectralBasis.of(weights[0]), SpectralBasis.of(weights[1], rank=3), SpectralBasis.of(weights[2])]
    gradients = [torch.randn_like(W) for W in weights]
    expected = [rescale_gradient(G, basis, 0.5) for G, basis in zip(gradients, bases)]
    assert all(map(torch.equal, rescale_gradient(gradients, bases, 0.5), expected))
    rescale_gradient(gradients, bases, 0.5, out=gradients)
    assert all(map(torch.equal, gradients, expected))
    assert rescale_gradient([], [], 0.5) == []


def test_default_drops_for_a_whole_basis_and_keeps_for_a_truncated_one():
    W, G = torch.randn(2, 20, 12)
    whole, truncated = SpectralBasis.of(W), SpectralBasis.of(W, rank=4)
    assert torch.equal(rescale_gradient(G, whole, 0.5), rescale_gradient(G, whole, 0.5, "drop"))
    assert torch.equal(rescale_gradient(G, truncated, 0.5), rescale_gradient(G, truncated, 0.5, "keep"))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("out_of_span", MODES)
@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("shape", [(12, 12), (20, 8), (8, 20)], ids=str)
def test_a_non_finite_gradient_comes_back_as_it_came(shape, rank, out_of_span, bad):
    W, G = torch.randn(2, 3, *shape)
    basis = SpectralBasis.of(W, rank=rank)
    expected = rescale_gradient(G, basis, 0.5, out_of_span)
    G[1, 3, 2] = bad
    expected[1] = G[1]
    assert torch.equal(rescale_gradient(G, basis, 0.5, out_of_span).nan_to_num(7.0), expected.nan_to_num(7.0))


def test_transposed_gradients_are_right():
    W, G = torch.randn(2, 20, 12)
    basis = SpectralBasis.of(W)
    assert error(rescale_gradient(G.mT.contiguous().mT, basis, 0.5), rescale_gradient(G, basis, 0.5)) < 1e-6


def test_rescale_keeps_tiny_entries_beside_large_ones():
    g = torch.tensor([1e20, 1e-20, -1e-20])
    S = torch.tensor([3.0, 2.0, 1.0])
    assert torch.equal(rescale(g, S, 0.0), g)
    assert error(rescale(g, S, 0.5), reference.rescale(g.double(), S.double(), 0.5)) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_least_numbers_are_members_of_their_group(dtype):
    least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    S = torch.ones(2, dtype=dtype)
    for backend in ("torch", "triton") if dtype == torch.float32 else ("torch",):
        found = ops.rescale(torch.tensor([least, 1.0], dtype=dtype), S, 1.0, backend=backend)
        assert error(found, torch.full((2,), 0.5, dtype=torch.float64).sqrt()) < 1e-6
    # alone, a number far below the root of the least one keeps its energy
    alone = torch.tensor([torch.finfo(dtype).smallest_normal, 0], dtype=dtype)
    assert error(rescale(alone, S, 1.0) * 2.0**100, alone.double() * 2.0**100) < 1e-6


@pytest.mark.parametrize("shape", [(16, 16), (24, 16), (16, 24)], ids=str)
@pytest.mark.parametrize("out_of_span", MODES)
def test_operator_contract(shape, out_of_span):
    basis, G = basis_and_gradient(shape, torch.float32)
    arguments = (G, basis.U, basis.S, basis.Vh, 0.5, out_of_span, torch.zeros_like(G))
    assert set(torch.library.opcheck(ops._rescale_gradient, arguments).values()) == {"SUCCESS"}


def test_unwritten_memory_is_seen():
    assert torch.empty_like(torch.zeros(3)).isnan().all()


def test_compiled_equals_eager():
    basis, G = basis_and_gradient((16, 24), torch.float32)
    compiled = torch.compile(lambda G: rescale_gradient(G, basis, 0.5), backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(G), rescale_gradient(G, basis, 0.5))


@pytest.mark.parametrize("rho", [-0.1, 1.1, torch.nan, torch.inf])
def test_rho_out_of_range(rho):
    basis, G = basis_and_gradient((8, 8), torch.float32)
    with pytest.raises(ValueError, match="rho"):
        rescale_gradient(G, basis, rho, out=G)


@pytest.mark.parametrize(
    ("wrong", "error_type", "named"),
    [
        ({"G": torch.zeros(8, 9)}, ValueError, "G must be .8, 8. to fit the others, got .8, 9."),
        ({"G": torch.zeros(8, 8, dtype=torch.int32)}, TypeError, "G"),
        ({"G": torch.zeros(8, 8, dtype=torch.complex64)}, TypeError, "G"),
        ({"out_of_span": "lose"}, ValueError, "out_of_span"),
        ({"backend": "numpy"}, ValueError, "backend"),
        ({"out": torch.zeros(8, 8, dtype=torch.float64)}, ValueError, "out"),
        ({"out": torch.zeros(8, 7)}, ValueError, "out"),
        ({"G": torch.zeros(8, 8, device="meta")}, ValueError, "basis.to"),
        ({"G": [[0.0]]}, TypeError, "basis must be a list"),
        ({"G": torch.zeros(8, 8).to_sparse()}, TypeError, "G must be a real, dense"),
        ({"basis": [1]}, TypeError, "basis must be a list where G is a list"),
        ({"basis": 3}, TypeError, "basis must be"),
        ({"out": [torch.zeros(8, 8)]}, TypeError, "out must be a list where G is a list"),
        ({"out": torch.zeros(8, 1).expand(8, 8)}, ValueError, "share no memory"),
        ({"rho": "half"}, ValueError, "rho must be"),
        ({"rho": None}, ValueError, "rho must be"),
        ({"rho": True}, ValueError, "rho must be"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_arguments_are_named(wrong, error_type, named):
    basis, G = basis_and_gradient((8, 8), torch.float32)
    with pytest.raises(error_type, match=named):
        rescale_gradient(**{"G": G, "basis": basis, "rho": 0.5, **wrong})


def test_out_across_the_gradient_is_refused_and_beside_it_is_not():
    basis, _ = basis_and_gradient((8, 8), torch.float32)
    memory = torch.randn(17, 8)
    before = memory.clone()
    with pytest.raises(ValueError, match="share no memory"):
        rescale_gradient(memory[:8], basis, 0.5, out=memory[1:9])
    with pytest.raises(ValueError, match="share no memory"):
        rescale_gradient(memory[:8], basis, 0.5, out=memory[:8].mT)
    assert torch.equal(memory, before)
    rescale_gradient(memory[:8], basis, 0.5, out=memory[8:16])
    assert torch.equal(memory[:8], before[:8]) and torch.equal(memory[16:], before[16:])


def test_a_parameter_may_be_written_to():
    basis, G = basis_and_gradient((8, 8), torch.float32)
    parameter = torch.nn.Parameter(G.clone())
    rescale_gradient([parameter], [basis], 0.5, out=[parameter])
    assert torch.equal(parameter.detach(), rescale_gradient(G, basis, 0.5))


def test_a_bad_list_changes_nothing():
    basis, G = basis_and_gradient((8, 8), torch.float32)
    before = G.clone()
    with pytest.raises(ValueError, match="differ in length"):
        rescale_gradient([G, G], [basis], 0.5)
    with pytest.raises(ValueError, match=r"G must be \(8, 8\) to fit"):
        rescale_gradient([G, torch.zeros(3, 3)], [basis, basis], 0.5, out=[G, torch.zeros(3, 3)])
    assert torch.equal(G, before)
