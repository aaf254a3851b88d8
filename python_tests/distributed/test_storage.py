"""A checkpoint serves as many ranks as wrote it, bit by bit, and others; a rank that dies takes nothing with it."""

import signal

import pytest
import torch

from python_tests.distributed import storage
from python_tests.distributed.ranks import run, start


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """A folder with what 4 ranks left after 4 steps, and what they did."""
    folder = str(tmp_path_factory.mktemp("run"))
    others = [(check, folder) for check in (storage.damaged, storage.lost_in_part, storage.over_a_file)]
    found = run(4, (storage.leave, folder), (storage.go_on, folder), *others)
    return folder, found


def distance(left, right):
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(left, right))


def test_each_weight_is_decomposed_by_one_rank(left):
    _, found = left
    assert [count for count, *_ in found["leave"]] == [1, 1, 1, 0]


def test_as_many_ranks_go_on_bit_by_bit(left):
    _, found = left
    for (_, saved, uninterrupted), (count, before, after, steps) in zip(found["leave"], found["go_on"]):
        assert count == 0 and steps == 8
        assert all(torch.equal(a, b) for a, b in zip(before, saved))
        assert all(torch.equal(a, b) for a, b in zip(after, uninterrupted))


def test_other_ranks_go_on_to_a_rounding(left):
    folder, found = left
    _, saved, uninterrupted = found["leave"][0]
    resumed = run(2, (storage.go_on, folder), (storage.from_a_file, folder))
    for count, before, after, steps in resumed["go_on"]:
        assert count == 0 and steps == 8
        assert all(torch.equal(a, b) for a, b in zip(before, saved))
        assert distance(after, uninterrupted) <= 1e-6
    # the first rank wrote that file in one process
    assert resumed["from_a_file"] == [0, 0]


def test_a_directory_that_was_not_finished_is_refused(left):
    assert all("half was not written to its end, or is damaged" in found for found in left[1]["damaged"])


def test_what_one_rank_cannot_read_or_write_is_said_by_all(left):
    reads, writes = zip(*left[1]["lost_in_part"])
    assert any(one.startswith("ValueError: bases:") and "is damaged" in one for one in reads)
    assert all(one.startswith(("ValueError: bases:", "RuntimeError: another rank has failed")) for one in reads)
    assert all(one.endswith("could not be written: rank 3 met OSError: No space left on device") for one in writes)


def test_a_directory_takes_the_place_of_a_file(left):
    assert left[1]["over_a_file"] == [(["bases"], True)] * 4


@pytest.mark.parametrize("check", [storage.die_in_a_step, storage.die_in_a_save])
def test_a_rank_that_is_killed_ends_the_others_with_an_error(check, tmp_path):
    _, failures, codes = start(3, (check, str(tmp_path), 1))
    assert codes[1] == -signal.SIGKILL and len(failures) == 2
    assert all("Error" in failure for failure in failures)
    # the bases are those of the start, whole
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == ["bases"]
    assert run(2, (storage.go_on_afresh, str(tmp_path)))["go_on_afresh"] == [0, 0]
