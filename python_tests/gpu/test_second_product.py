import pytest
import torch

from gsr_kernels.backends import cuda
from python_tests.oracle import error

# whole tiles, ragged ones, less than one, several tiles a block; the last one is repeated
SHAPES = [(1, 256, 256, 256), (2, 128, 384, 64), (3, 1000, 1032, 520), (5, 130, 264, 72), (2, 1, 8, 8),
          (2, 4096, 2048, 2048)]  # fmt: skip
REPEATED, REPEATS = SHAPES[-1], 1000


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


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("lying", [False, True])
@pytest.mark.parametrize("count, rows, columns, depth", SHAPES)
def test_a_step(record, count, rows, columns, depth, lying, kept):
    left, right = torch.randn(count, rows, depth).half(), torch.randn(count, depth, columns).half()
    given = right.mT.contiguous() if lying else right
    G, W, m = torch.randn(3, count, rows, columns)
    v = torch.rand(count, rows, columns) + 0.1
    step, scale = 7, 4.0
    values = [1, 1 / scale, 0.1, 0.999, 0.001, 1e-2 / (1 - 0.9**step), (1 - 0.999**step) ** -0.5, 1e-8, 1 - 1e-3]
    # of each matrix its own
    coefficients, finite = torch.tensor(values).repeat(count, 1), torch.ones(count, dtype=torch.bool)
    unscale = coefficients[:, 1] = torch.arange(1, count + 1) / scale
    scales = 2.0 ** torch.arange(count)

    def run():
        found = [one.clone() for one in (W, m, v)]
        cuda.second_product_adamw(left, given, lying, kept, scales, coefficients, finite, G, *found)
        return found

    def same(found, other):
        # bits: NaN is to stay as well
        return all(torch.equal(one.view(torch.int32), two.view(torch.int32)) for one, two in zip(found, other))

    found = run()
    product = left.double() @ right.double() / scales.view(-1, 1, 1) + (G.double() if kept else 0)
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


def test_operands_with_gaps_between_their_matrices():
    left, right = torch.randn(3, 130, 80).half()[..., :72], torch.randn(3, 72, 264).half()
    memory = torch.empty(3, 130 * 72 + 64).half()
    apart = memory[:, : 130 * 72].view(3, 130, 72).copy_(left)
    scalars = torch.ones(3), torch.rand(3, 9) + 0.5, torch.ones(3, dtype=torch.bool)
    found = [torch.ones(4, 3, 130, 264) for _ in range(2)]
    for operand, tensors in zip((left.contiguous(), apart), found):
        cuda.second_product_adamw(operand, right, False, True, *scalars, *tensors)
    assert torch.equal(*found) and not (found[0][1:] == 1).all()


def test_what_tma_cannot_take_is_refused():
    def refused(message, left, right, W):
        with pytest.raises(RuntimeError, match=message):
            scalars = torch.ones(1), torch.ones(1, 9), torch.ones(1, dtype=torch.bool)
            cuda.second_product_adamw(left, right, True, False, *scalars, W, W, W, W)

    left, right, W = torch.zeros(1, 8, 8).half(), torch.zeros(1, 12, 8).half(), torch.zeros(1, 8, 8)
    refused("multiples of 8, got 12 and 8", left, right, W)
    refused("left must begin at a multiple of 16 bytes", torch.zeros(65).half()[1:].view(1, 8, 8), left, W)
    refused("right must be fp16", left, left.float(), W)
    refused("W must be contiguous", left, left, W[:, :4])
    refused("left and right", left[0], left, W)
