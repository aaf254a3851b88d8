import pytest
import torch

from bench import candidates
from bench.cases.rescale_gpu import Drawn, by_candidate
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
    first = drawn.delta.clone()
    for _ in range(1000):
        launch()
    assert torch.equal(first, drawn.delta)
    drawn.partials[-1] = torch.nan
    launch()
    assert drawn.finite.tolist() == [True] * 5 + [False]
    assert not drawn.delta[-16384:].any() and torch.equal(first[:-16384], drawn.delta[:-16384])


# whole tiles, ragged ones, less than one, more than a grid
SHAPES = [(256, 256, 256), (128, 384, 64), (1000, 1032, 520), (130, 264, 72), (1, 8, 8), (4096, 2048, 2048)]


@products
@pytest.mark.parametrize("rows, columns, depth", SHAPES)
def test_the_first_product(as_good, rows, columns, depth):
    left, right = torch.randn(rows, depth).bfloat16(), torch.randn(columns, depth).bfloat16()
    # what lies behind the result stays
    memory = torch.full((rows * columns + 64,), 7.0).bfloat16()
    out = memory[: rows * columns].view(rows, columns)
    torch.ops.gsr_candidates.first_product(left, right, out)
    truth = left.double() @ right.double().mT
    as_good(f"first product {rows}x{columns}x{depth}", out, truth, left @ right.mT, 2**-8)
    assert (memory[rows * columns :] == 7).all()


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
@pytest.mark.parametrize("rows, columns, depth", SHAPES)
def test_the_second_product_and_adamw(record, rows, columns, depth, kept):
    left, right = torch.randn(rows, depth).bfloat16(), torch.randn(depth, columns).bfloat16()
    G, W, m = torch.randn(3, rows, columns)
    v = torch.rand(rows, columns) + 0.1
    step, scale = 7, 4.0
    values = [1, 1 / scale, 0.1, 0.999, 0.001, 1e-2 / (1 - 0.9**step), (1 - 0.999**step) ** -0.5, 1e-8, 1 - 1e-3]
    coefficients, finite = torch.tensor(values), torch.tensor([True])

    def run():
        found = [one.clone() for one in (W, m, v)]
        torch.ops.gsr_candidates.second_product_adamw(left, right, G, kept, coefficients, finite, *found)
        return found

    found = run()
    product = left.double() @ right.double() + (G.double() if kept else 0)
    expected = adamw(W.double(), m.double(), v.double(), product / scale)
    for name, one, true in zip(("moved", "m", "v"), (found[0] - W, *found[1:]), expected):
        # float32 sums of exact products; what W moved by is a difference
        distance = error(one, true)
        record(f"{name} {rows}x{columns}x{depth}", count=one.numel(), error=f"{distance:.3e}")
        assert distance < 1e-4
    for _ in range(100):
        assert all(torch.equal(one, again) for one, again in zip(found, run()))
    # neither what was not finite nor a step that shall not be taken moves anything
    left[0, 0] = torch.nan
    for stop in (finite, coefficients[:1]):
        stop.zero_()
        assert all(torch.equal(one, before) for one, before in zip(run(), (W, m, v)))


@products
def test_what_tma_cannot_take_is_refused():
    left, right, out = torch.zeros(8, 8).bfloat16(), torch.zeros(12, 8).bfloat16(), torch.zeros(8, 12).bfloat16()
    with pytest.raises(RuntimeError, match="multiples of 8, got 12 and 8"):
        torch.ops.gsr_candidates.first_product(left, right, out)
    shifted = torch.zeros(65).bfloat16()[1:].view(8, 8)
    with pytest.raises(RuntimeError, match="left must begin at a multiple of 16 bytes"):
        torch.ops.gsr_candidates.first_product(shifted, left, torch.zeros(8, 8).bfloat16())
