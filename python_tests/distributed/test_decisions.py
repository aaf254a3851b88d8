"""Errors of one rank are decided by all of them together: an error on each, and no rank that waits for another."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from torch.distributed.tensor import Shard

from python_tests.distributed import decisions
from python_tests.distributed.ranks import run


@cache
def results(world):
    """One group of processes for all that is asked of so many ranks."""
    with TemporaryDirectory() as folder:
        if world == 4:
            Path(folder, "one").mkdir()
            return run(
                4, (decisions.strict, (Shard(0), Shard(1)), (2, 2)), (decisions.side_by_side, f"{folder}/one", True)
            )
        checks = [(decisions.strict, (Shard(0),)), (decisions.without_gradients_at_rate_zero,)]
        checks += [(check, folder) for check in (decisions.other_weights, decisions.failures, decisions.experts)]
        return run(
            2,
            *checks,
            (decisions.broken_off, folder),
            (decisions.placed_by_default,),
            (decisions.in_parts,),
            (decisions.ways, folder),
        )


@pytest.mark.parametrize("world", [2, 4])
def test_an_expert_that_is_not_finite_is_an_error_on_ranks_that_hold_others(world):
    for message, unchanged in results(world)["strict"]:
        assert "holds NaN or Inf; nothing was changed" in message and unchanged
    assert results(world)["strict"][0][0].startswith("the gradient of experts")


def test_all_ranks_step_in_the_way_that_is_right_and_fast_on_every_node():
    for backend, seconds, wrong, known in results(2)["ways"]:
        assert backend == "torch" and seconds == {"triton": 3.0, "torch": 2.5} and wrong == {"cublas": "NaN"}
        assert known == ["step bfloat16 float16 drop square whole 64 64 64"]


def test_ranks_without_gradients_step_with_the_others_at_rate_zero():
    assert results(2)["without_gradients_at_rate_zero"] == [2, 2]


def test_an_optimizer_of_one_rank_s_part_is_refused_on_all_and_the_whole_is_not():
    for said, far in results(2)["in_parts"]:
        assert "the ranks [0, 1] hold different parameters" in said and "give attach() the outer optimizer" in said
        assert far == 0


def test_bases_of_other_weights_wait_for_all_ranks():
    assert results(2)["other_weights"] == [[True, True]] * 2


def test_what_one_rank_meets_ends_all():
    [first, second] = results(2)["failures"]
    assert [message.split(":")[0] for message in first] == [
        "RuntimeError",
        "RuntimeError",
        "ValueError",
        "RuntimeError",
    ]
    assert [message.split(":")[0] for message in second] == [
        "FileNotFoundError",
        "RuntimeError",
        "ValueError",
        "RuntimeError",
    ]
    assert first[1] == second[1] == "RuntimeError: no memory"
    for messages in (first, second):
        assert "the checkpoint needs those of" in messages[2]
        assert "the gradient of linear.weight is placed as (Shard(dim=0),)" in messages[3]


def test_experts_count_for_themselves_and_keep_no_state():
    for message, *_ in results(2)["experts"]:
        assert message.startswith("TypeError: method: SR keeps") and "experts" in message
    assert [counts for _, *counts in results(2)["experts"]] == [[1, 1], [0, 0]]


def test_two_groups_of_ranks_leave_one_path_whole():
    for names, resuming in results(4)["side_by_side"]:
        assert names == ["bases"] and resuming == [0, 0]


def test_a_write_that_was_broken_off_leaves_the_bases_of_before():
    assert results(2)["broken_off"] == [0, 0]


def test_the_placements_advised_leave_experts_whole():
    assert results(2)["placed_by_default"] == [["None", "S(1)", "None"]] * 2
