"""Bases shared by the ranks of a weight: the same bits, less memory, and the traffic that is said."""

from functools import cache
from tempfile import TemporaryDirectory

import pytest
from torch.distributed.tensor import Replicate, Shard

from gsr_kernels.cli.estimate import share
from gsr_kernels.cli.floors import Kind
from python_tests.distributed import sharing
from python_tests.distributed.ranks import run

# what ranks share comes out even
TALL = {"tall": (16, 8)}
# whole factors that are held at most where 4 ranks gather them
ROOM = {
    ((4,), (Shard(0),)): 2,
    # beside one that is ready: the next one, and the part that this rank sends
    ((4,), (Shard(1),)): 2.25,
    ((2, 2), (Shard(1), Shard(1))): 2,
}


@cache
def results(world):
    """One group of processes for all that is asked of so many ranks."""
    if world == 4:
        pairs = [(Replicate(), Shard(0)), (Shard(0), Shard(1)), (Shard(0), Shard(0))]
        layouts = [((2, 2), pair) for pair in pairs]
        hsdp = (sharing.held_and_sent, (2, 2), (Replicate(), Shard(0)), TALL)
        return run(4, (sharing.bits, layouts), hsdp, (sharing.experts,), (sharing.room, list(ROOM)))
    if world == 3:
        return run(3, (sharing.bits, [((3,), (placement,)) for placement in (Shard(0), Shard(1))]))
    with TemporaryDirectory() as folder:
        checks = [(sharing.held_and_sent, (2,), (Shard(0),), TALL), (sharing.kept, folder), (sharing.gsr_adamw,)]
        return run(2, *checks, (sharing.at_a_time,), (sharing.products_before,), (sharing.refusals,))


@pytest.mark.parametrize("world", [3, 4])
def test_every_bit_is_that_of_whole_factors(world):
    for different in results(world)["bits"]:
        assert len(different) == (9 if world == 4 else 6) and not any(different.values()), different


@pytest.mark.parametrize("world", [2, 4])
def test_a_rank_holds_its_share_and_gathers_what_is_said(world):
    # rows sharded by two ranks, in HSDP too: 8 directions of 8 elements are shared
    for found in results(world)["held_and_sent"]:
        for (dtype, out_of_span), (held, sent) in found.items():
            half = 8 * 8 * dtype.itemsize // 2
            assert held == 8 * 16 * dtype.itemsize // 2 + half
            said = share([Kind(1, 16, 8)], None, out_of_span, "rows", 2, dtype.itemsize, shard_bases=True)
            gathers = [one for one in sent if one[0] == "_allgather_base_"]
            # "drop" with its long side sharded needs Vh after its sum alone
            assert gathers == [("_allgather_base_", half)] * (2 if out_of_span == "keep" else 1)
            # two ranks give what each of them then has
            assert (held + 4 * 8, 2 * half * len(gathers)) == (said.held, said.gathered)
            [summed] = [one for one in sent if one not in gathers]
            assert (
                summed == ("allreduce_", 4 * (8 if out_of_span == "keep" else 8 * 8)) == ("allreduce_", 4 * said.summed)
            )


def test_experts_that_are_cut_share_what_is_theirs():
    assert all(results(4)["experts"])


def test_one_gathered_basis_is_there_at_a_time():
    # each of 5 weights twice
    assert results(2)["at_a_time"] == [(1, 10)] * 2


def test_two_whole_factors_are_held_at_a_time():
    expected = {(sides, str(placements)): room for (sides, placements), room in ROOM.items()}
    assert results(4)["room"] == [expected] * 4


def test_a_basis_is_on_its_way_while_the_one_before_it_is_used():
    # a product of each of 5 weights before the sum, and one after it
    assert results(2)["products_before"] == [[0, *range(9)]] * 2


def test_shared_bases_are_kept_and_found_by_any_ranks():
    for counts, distances in results(2)["kept"]:
        assert counts == [0, 0, 0] and distances[:2] == [0, 0] and distances[2] <= 1e-12


def test_gsr_adamw_shares_bases():
    assert results(2)["gsr_adamw"] == [0, 0]


def test_sharing_is_refused_where_nothing_is_sharded():
    for messages in results(2)["refusals"]:
        assert all(one.startswith("ValueError: shard_bases: no weight is sharded over ranks") for one in messages)
