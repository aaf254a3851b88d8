import pytest
import torch

from bench.cases.rescale_gpu import Drawn, by_candidate
from bench.gpu import candidates
from python_tests.oracle import error


def products(function):
    return pytest.mark.skipif(not candidates.has("first_product"), reason="built without CUTLASS")(function)


def test_the_rescale(record):
    drawn = Drawn([(1, 1), (3, 2), (1000, 7), (2048, 16), (2049, 3), (16384, 2)], torch.device("cuda"))
    launch = by_candidate(drawn)
    launch()
    found = drawn.error()
    record("g and δ", count=drawn.g.numel(), error=f"{found:.3e}")
    assert found < 1e-6
    results = (drawn.g, drawn.delta, drawn.finite)
    first = [one.clone() for one in results]
    for _ in range(1000):
        launch()
        assert all(torch.equal(one, again) for one, again in zip(first, results))
    drawn.partials[-1] = torch.nan
    launch()
    assert drawn.finite.tolist() == [True] * 5 + [False]
    assert not drawn.delta[-16384:].any() and torch.equal(first[1][:-16384], drawn.delta[:-16384])


# whole tiles, ragged ones, less than one, several tiles a block; the last one is repeated
SHAPES = [(1, 256, 256, 256), (2, 128, 384, 64), (3, 1000, 1032, 520), (5, 130, 264, 72), (2, 1, 8, 8),
          (2, 4096, 2048, 2048)]  # fmt: skip
REPEATED, REPEATS = SHAPES[-1], 1000


@products
@pytest.mark.parametrize("count, rows, columns, depth", SHAPES)
def test_the_first_product(as_good, count, rows, columns, depth):
    left, right = torch.randn(count, rows, depth).bfloat16(), torch.randn(count, columns, depth).bfloat16()
    # what lies behind the result stays
    size = count * rows * columns
    memory = torch.full((size + 64,), 7.0).bfloat16()
    out = memory[:size].view(count, rows, columns)
    torch.ops.gsr_candidates.first_product(left, right, out)
    truth = left.double() @ right.double().mT
    as_good(f"first product {count}x {rows}x{columns}x{depth}", out, truth, left @ right.mT, 2**-8)
    assert (memory[size:] == 7).all()
    first = out.clone()
    for _ in range(REPEATS if (count, rows, columns, depth) == REPEATED else 5):
        out.fill_(torch.nan)
        torch.ops.gsr_candidates.first_product(left, right, out)
        assert torch.equal(first, out)


def adamw(W, m, v, G):
    """One step from moments that are not new, in the dtype given; what W moved by, m and v."""
    parameter = W.clone().requires_grad_()
    parameter.grad = G
    optimizer = torch.optim.AdamW([parameter], 1e-2, (0.9, 0.999), 1e-8, 0.1)
    taken = torch.tensor(6.0, device="cpu")
    optimizer.state[parameter] = {"step": taken, "exp_avg": m.clone(), "exp_avg_sq": v.clone()}
    optimizer.step()
    state = optimizer.state[parameter]
    return parameter.detach() - W, state["exp_avg"], state["exp_avg_sq"]


@products
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("lying", [False, True])
@pytest.mark.parametrize("count, rows, columns, depth", SHAPES)
def test_the_second_product_and_adamw(record, count, rows, columns, depth, lying, kept):
    left, right = torch.randn(count, rows, depth).bfloat16(), torch.randn(count, depth, columns).bfloat16()
    given = right.mT.contiguous() if lying else right
    G, W, m = torch.randn(3, count, rows, columns)
    v = torch.rand(count, rows, columns) + 0.1
    step, scale = 7, 4.0
    values = [1, 1 / scale, 0.1, 0.999, 0.001, 1e-2 / (1 - 0.9**step), (1 - 0.999**step) ** -0.5, 1e-8, 1 - 1e-3]
    # of each matrix its own
    coefficients, finite = torch.tensor(values).repeat(count, 1), torch.ones(count, dtype=torch.bool)
    unscale = coefficients[:, 1] = torch.arange(1, count + 1) / scale

    def run():
        found = [one.clone() for one in (W, m, v)]
        torch.ops.gsr_candidates.second_product_adamw(left, given, lying, G, kept, coefficients, finite, *found)
        return found

    def same(found, other):
        # bits: NaN is to stay as well
        return all(torch.equal(one.view(torch.int32), two.view(torch.int32)) for one, two in zip(found, other))

    found = run()
    product = left.double() @ right.double() + (G.double() if kept else 0)
    expected = adamw(W.double(), m.double(), v.double(), product * unscale.view(-1, 1, 1))
    for name, one, true in zip(("moved", "m", "v"), (found[0] - W, *found[1:]), expected):
        # float32 sums of exact products; what W moved by is a difference
        distance = error(one, true)
        record(f"{name} {count}x {rows}x{columns}x{depth}", count=one.numel(), error=f"{distance:.3e}")
        assert distance < 1e-4
    for _ in range(REPEATS if (count, rows, columns, depth) == REPEATED else 5):
        assert same(found, run())
    # neither a matrix that was not finite nor one whose step shall not be taken moves; those beside it do
    left[-1, 0, 0] = G[-1, 0, 0] = W[-1, 0, 0] = m[-1, -1, -1] = torch.nan
    for stopped in (finite, coefficients[:, 0]):
        stopped[-1] = 0
        again = run()
        assert same([one[-1] for one in again], [one[-1] for one in (W, m, v)])
        assert same([one[:-1] for one in again], [one[:-1] for one in found])
        stopped[-1] = 1


@products
def test_what_tma_cannot_take_is_refused():
    shapes = (1, 8, 8), (1, 12, 8), (1, 8, 12)
    left, right, out = (torch.zeros(shape).bfloat16() for shape in shapes)
    with pytest.raises(RuntimeError, match="multiples of 8, got 12 and 8"):
        torch.ops.gsr_candidates.first_product(left, right, out)
    shifted = torch.zeros(65).bfloat16()[1:].view(1, 8, 8)
    with pytest.raises(RuntimeError, match="left must begin at a multiple of 16 bytes"):
        torch.ops.gsr_candidates.first_product(shifted, left, torch.zeros_like(left))
    refused = {
        "right must": (left, left.float(), left),
        "out must": (left, left, left[:, :4]),
        "left and right": (left[0], left, left),
    }
    for message, operands in refused.items():
        with pytest.raises(RuntimeError, match=message):
            torch.ops.gsr_candidates.first_product(*operands)


def test_what_the_rescale_cannot_take_is_refused():
    drawn = Drawn([(4, 1)], torch.device("cuda"))
    right = {"segments": drawn.table.cuda(), "longest": 4, "partials": drawn.partials, "S": drawn.S, "rho": drawn.rho,
             "floor": 0.0, "g": drawn.g, "delta": drawn.delta, "finite": drawn.finite}  # fmt: skip
    wrong = {"segments": right["segments"].int(), "partials": drawn.partials.double(), "S": drawn.S.double(),
             "rho": drawn.rho.double(), "g": drawn.g[:3], "delta": drawn.delta.half(), "finite": drawn.g,
             "longest": 16385}  # fmt: skip
    for name, one in wrong.items():
        with pytest.raises(RuntimeError, match="k must be from 1" if name == "longest" else f"{name} must"):
            torch.ops.gsr_candidates.rescale(*{**right, name: one}.values())
