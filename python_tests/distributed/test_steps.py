"""A step in several buckets is the step in one; each bucket is one all-reduce a group of ranks."""

from functools import cache

import pytest
from torch.distributed.tensor import Shard

from python_tests.distributed import steps
from python_tests.distributed.ranks import run

# two weights of 36 elements
BUCKET = 72


@cache
def results(world):
    """One group of processes for all that is asked of so many ranks."""
    if world == 2:
        checks = [(steps.in_buckets, (2,), (Shard(0),), BUCKET), (steps.products_before, BUCKET)]
        return run(2, *checks, (steps.one_a_weight,), (steps.held, (2,), (Shard(0),)))
    if world == 3:
        return run(3, (steps.unlike_memberships,))
    both = (2, 2), (Shard(0), Shard(1))
    return run(4, (steps.in_buckets, *both, BUCKET), (steps.held, *both))


@pytest.mark.parametrize("world", [2, 4])
def test_a_step_in_buckets_agrees_with_one_process(world):
    for found in results(world)["in_buckets"]:
        assert len(found) == len(steps.SETTINGS) and max(error for error, _ in found) <= 1e-12


@pytest.mark.parametrize(("world", "dimensions"), [(2, 1), (4, 2)])
def test_sums_that_a_bucket_holds_are_one_all_reduce(world, dimensions):
    for (_, keep), (_, drop), (_, strict), (_, offloaded), (_, truncated) in results(world)["in_buckets"]:
        # 6 weights of 6 directions each
        assert keep == [("allreduce_", 8 * 6 * 6)] * dimensions
        # 6 times 36 elements, two weights a bucket; the ranks of "error" vote as well
        assert drop == offloaded == [("allreduce_", 8 * BUCKET)] * 3 * dimensions
        assert [one for one in strict if one[1] > 4] == drop
        # 6 cores of 9 elements
        assert truncated == [("allreduce_", 8 * 6 * 9)] * dimensions


def test_a_bucket_travels_under_the_products_of_its_neighbours():
    # of 12 products: two weights' first ones, the next two's, then second and first ones in turn
    assert results(2)["products_before"] == [[2, 4, 8]] * 2


@pytest.mark.parametrize("world", [2, 4])
def test_two_buckets_and_a_part_are_held_at_a_time(world):
    # a part is half of a bucket
    assert results(world)["held"] == [2.5] * world


def test_buckets_of_a_group_have_one_order_whatever_other_groups_its_ranks_are_in():
    assert max(error for error, _ in results(3)["unlike_memberships"]) <= 1e-12


def test_ranks_of_unlike_groups_are_refused_to_share_bases():
    messages = [message for _, message in results(3)["unlike_memberships"]]
    assert all(one.startswith("ValueError: shard_bases: ranks that share a weight") for one in messages), messages


def test_buckets_count_what_one_rank_lacks_and_keep_what_is_not_finite():
    for error, outcomes in results(2)["one_a_weight"]:
        assert error <= 1e-12
        for same, counts in outcomes["skip"].values():
            assert same["wide"] and not same["tall"] and not same["square"]
            assert [name for name, count in counts.items() if count] == ["wide.weight"]
        for message, unchanged in outcomes["error"].values():
            assert message.startswith("the gradient of wide.weight holds NaN or Inf") and unchanged
