import pytest
import torch

from gsr_kernels.backends.triton.plan import Plan
from python_tests.gpu.weights import BF16, FP16, FP32, REPEATS, draw
from python_tests.oracle import by_triton

# unlike shapes, dtypes and forms, two of a kind, one ragged
WEIGHTS = [
    ((1024, 1024), BF16, "drop", None),
    ((512, 1024), BF16, "drop", None),
    ((2048, 512), BF16, "drop", None),
    ((512, 2048), BF16, "drop", None),
    ((1024, 1024), FP32, "drop", None),
    ((1024, 768), FP32, "keep", 64),
    ((130, 257), BF16, "drop", None),
    ((2048, 512), BF16, "drop", None),
    ((4, 256, 128), BF16, "keep", None),
]


@pytest.fixture
def model():
    drawn = [draw(shape, gradient, FP16, rank) for shape, gradient, _, rank in WEIGHTS]
    bases, gradients = [basis for basis, _ in drawn], [G for _, G in drawn]
    plan = Plan(bases, [one[1] for one in WEIGHTS], 0.5, [one[2] for one in WEIGHTS])
    return plan, gradients


def apart(plan, gradients, rho):
    """Each weight by itself."""
    outs = [torch.full_like(G, torch.nan) for G in gradients]
    for G, basis, out, (_, _, mode, _) in zip(gradients, plan.bases, outs, WEIGHTS):
        by_triton(G, basis, rho, mode, out)
    return outs


def same(found, expected):
    return all(torch.equal(one, other) for one, other in zip(found, expected))


def test_a_model_at_once_is_its_weights_one_by_one(model):
    plan, gradients = model
    expected = apart(plan, gradients, 0.5)
    plan.run(gradients)
    assert same(gradients, expected)


def test_the_same_bits_a_thousand_times(record, model):
    plan, gradients = model
    outs = [torch.full_like(G, torch.nan) for G in gradients]
    plan.run(gradients, outs)
    first = [out.clone() for out in outs]
    differing = torch.zeros((), dtype=torch.int64)
    for _ in range(REPEATS):
        plan.run(gradients, outs)
        for out, one in zip(outs, first):
            differing += (out != one).any()
    record(f"differing of {REPEATS} repeats", count=REPEATS, error=differing.item())
    assert differing.item() == 0


def test_neither_synchronisation_nor_allocation_after_the_first_step(model):
    plan, gradients = model
    moved = [[G.clone() for G in gradients] for _ in range(4)]
    plan.warmup()
    plan.run(gradients)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for i, one in enumerate(moved):
            plan.set_rho(i / 4)
            plan.run(one)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


def test_replayed_with_rho_changed(model):
    plan, gradients = model
    kept = [G.clone() for G in gradients]
    expected = {rho: apart(plan, kept, rho) for rho in (0.5, 1.0, 0.0)}
    replay = plan.capture(gradients)
    assert same(gradients, kept)
    for rho, right in expected.items():
        for G, one in zip(gradients, kept):
            G.copy_(one)
        plan.set_rho(rho)
        replay(gradients)
        assert same(gradients, right)
    with pytest.raises(ValueError, match="set_to_none=False"):
        replay(kept)


def test_gradients_that_move_under_load(model):
    plan, gradients = model
    steps = [[torch.randn_like(G) for G in gradients] for _ in range(8)]
    expected = [apart(plan, one, 0.5) for one in steps]
    for one in steps:
        plan.run(one)
    assert all(same(one, right) for one, right in zip(steps, expected))
