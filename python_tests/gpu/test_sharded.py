"""Two processes share the GPU and each weight, with gloo between them; NCCL takes one process a GPU."""

from python_tests.distributed.ranks import run
from python_tests.gpu.two_ranks import SHAPES, agreement


def test_two_ranks_are_as_near_the_truth_as_torch_on_one(record):
    for rank, errors in enumerate(run(2, (agreement, "cuda"))["agreement"]):
        assert len(errors) == 4 * len(SHAPES)
        for (dim, out_of_span, name), (found, own) in errors.items():
            what = f"rank {rank} of 2, {name}, cut in dimension {dim}, {out_of_span}"
            record(what, error=f"{found:.3e}", torch_error=f"{own:.3e}")
            # below it both are right, and torch's may be so by luck
            assert found <= max(2 * own, 2e-6), f"{what}: {found:.2e}, torch {own:.2e}"
