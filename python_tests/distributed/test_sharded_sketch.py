"""Bases found from the shards of weights are those of the whole weight, which no rank ever holds."""

from functools import cache
from tempfile import TemporaryDirectory

import pytest
from torch.distributed.tensor import Replicate, Shard

from python_tests.distributed import matrices, sketches
from python_tests.distributed.ranks import run

LAYOUTS = [one for one in matrices.layouts(4) if any(placement.is_shard() for placement in one[1])]
FEW = [((4,), (Shard(0),)), ((4,), (Shard(1),)), ((2, 2), (Shard(0), Shard(1)))]
# and whether the ranks share what each would hold whole
CASES = [(*one, False) for one in LAYOUTS] + [(*one, True) for one in FEW]


@cache
def results():
    """One group of processes for all that is asked."""
    with TemporaryDirectory() as folder:
        checks = [(sketches.agreement, CASES), (sketches.spectra, (2, 2), (Shard(0), Shard(1)))]
        checks += [(sketches.degenerate,), (sketches.broken,), (sketches.memory, FEW), (sketches.kept, folder)]
        checks += [(sketches.rounded_otherwise, [((2, 2), (one, Shard(0))) for one in (Shard(0), Replicate())])]
        return run(4, *checks)


def test_every_placement_agrees_with_one_process():
    for errors in results()["agreement"]:
        assert len(errors) == len(CASES) * len(sketches.SHAPES)
        for error, same_bits in errors.values():
            assert error <= 1e-10 and same_bits, errors


@pytest.mark.parametrize(("check", "cases", "bound"), [("spectra", 10, 1.05), ("degenerate", 10, 1.2)])
def test_the_error_is_near_the_best(check, cases, bound):
    for found in results()[check]:
        assert len(found) == cases
        for error, defect, same_bits in found.values():
            assert error <= bound and defect <= 1e-5 and same_bits, found


def test_ranks_agree_to_the_bit_where_groups_round_otherwise():
    assert results()["rounded_otherwise"] == [True] * 4


def test_nan_in_one_shard_is_named_by_every_rank():
    assert len(set(results()["broken"])) == 1
    assert results()["broken"][0].startswith("ValueError: bad.weight: weight holds NaN or Inf")


def test_no_rank_holds_a_whole_weight():
    for found in results()["memory"]:
        assert len(found) == len(FEW)
        for held, largest, (rows, columns) in found.values():
            # the part once more, and four tall matrices a side, as wide as the sketch
            assert held <= rows * columns + 4 * 96 * (rows + columns), found
            assert largest <= max(rows * columns, 96 * max(rows, columns)), found


def test_a_sketch_that_is_kept_serves_no_run_that_wants_exact_bases():
    count = len(sketches.SHAPES)
    assert results()["kept"] == [(True, [True] * count + [False] * count)] * 4
