"""Experts are decomposed on their own ranks; what single ranks decompose for others takes no more room than it must."""

from functools import cache

import pytest
from torch.distributed.tensor import Replicate, Shard

from python_tests.distributed import decomposing
from python_tests.distributed.ranks import run

# experts, mesh, placements; how many each rank decomposes, and the messages that it exchanges
CASES = [
    ((2, (4,), (Shard(0),)), [1, 1, 0, 0], 0),
    ((5, (4,), (Shard(0),)), [2, 2, 1, 0], 0),
    ((5, (2, 2), (Replicate(), Shard(0))), [1, 1, 2, 1], 6),
    ((5, (4,), (Replicate(),)), [1, 1, 1, 2], 18),
]
# in weights: while one is gathered, and while U and Vh go to their ranks
ROOM = {
    ((4,), (Shard(0),)): (1, 0.25, 0),
    ((4,), (Shard(1),)): (1.25, 0, 0.5),
    ((2, 2), (Shard(0), Shard(1))): (1.25, 0.5, 1),
}


@cache
def results():
    """One group of processes for all that is asked."""
    cases = [case for case, *_ in CASES]
    return run(4, (decomposing.several, cases), (decomposing.broken_expert,), (decomposing.memory, list(ROOM)))


@pytest.mark.parametrize("index", range(len(CASES)))
def test_each_rank_decomposes_its_own_experts_and_replicas_share_theirs(index):
    _, counts, messages = CASES[index]
    found = [of[index] for of in results()["several"]]
    assert [one["decomposed"] for one in found] == counts
    assert all(one["error"] <= 1e-13 and one["same bits"] for one in found)
    assert {one["messages"] for one in found} == {messages}


def test_an_expert_that_is_broken_is_named_by_every_rank():
    assert len(set(results()["broken_expert"])) == 1
    assert results()["broken_expert"][0].startswith("ValueError: experts: weight holds NaN or Inf")


def test_a_rank_holds_a_weight_or_its_factors_and_one_part_on_its_way():
    first, *others = results()["memory"]
    for (sides, placements), room in ROOM.items():
        found = first[sides, str(placements)]
        assert (*found["gather"], *found["scatter"][::2]) == room
        # what the others receive they keep
        for other in others:
            assert other[sides, str(placements)]["gather"] == [0]
