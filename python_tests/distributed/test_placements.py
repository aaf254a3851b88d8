"""Placements that are advised, supported and refused."""

from functools import cache
from tempfile import TemporaryDirectory

from python_tests.distributed import placed
from python_tests.distributed.ranks import run


@cache
def results(world):
    """One group of processes for all that is asked of so many ranks."""
    if world == 2:
        return run(2, (placed.in_one,), (placed.partial_gradients,), (placed.packed_experts,))
    with TemporaryDirectory() as folder:
        return run(4, (placed.hsdp_for_drop,), (placed.unequal_shards_of_shards, folder))


def test_the_mesh_that_shards_decides_what_can_be_sharded():
    for unaware, placements, error, collectives in results(4)["hsdp_for_drop"]:
        # 6 columns on 4 ranks, but on 2 of a shard
        assert unaware == ["None", "None"]
        assert placements == ["(Replicate(), Shard(dim=1))", "(Replicate(), Shard(dim=0))"]
        assert error <= 1e-12 and collectives == [("allreduce_", 8 * (6 + 4))]


def test_unequal_shards_of_shards_agree_with_one_process_and_are_kept():
    for found, placements in results(4)["unequal_shards_of_shards"]:
        assert placements == ["(_StridedShard(dim=0, sf=2), Shard(dim=0))"] * 2
        for error, decomposed, resuming in found:
            assert error <= 1e-12 and (decomposed, resuming) == (0, 0)


def test_attention_in_one_is_supported_whole_and_refused_where_it_is_sharded():
    for replicated, rows, columns in results(2)["in_one"]:
        assert replicated == 0
        for message in (rows, columns):
            assert message.startswith("ValueError: heads: in_proj_weight is taken in 3 parts")
            assert "targets=" in message and "ignored_params" in message


def test_partial_gradients_are_summed_first():
    for placements, error in results(2)["partial_gradients"]:
        assert placements == ["(Partial(sum),)"] * 2 and error <= 1e-12


def test_packed_experts_are_refused_by_name():
    for message in results(2)["packed_experts"]:
        assert message.startswith("ValueError: experts is placed as _StridedShard") and "targets=" in message
