"""The choice of a driver on a GPU that is not there: timed once, kept on the disk, harmless where that is not to be."""

import json

import pytest
import torch

from gsr_kernels.linalg import drivers

GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(drivers, "machine", lambda device: "some GPU")
    drivers.decisions._known.clear()
    yield tmp_path / "cache" / "gsr_kernels" / "svd_drivers.json"
    drivers.decisions._known.clear()


class Clock:
    """Has one driver win, and counts."""

    def __init__(self, winner):
        self.winner, self.timed = winner, []

    def __call__(self, driver, size):
        self.timed.append((driver, size))
        return 1.0 if driver == self.winner else 2.0


def another_process():
    drivers.decisions._known.clear()


@pytest.mark.parametrize("winner", ["polar", "gesvdj"])
def test_the_faster_one_begins_and_the_others_take_over(winner):
    clock = Clock(winner)
    first, *rest = drivers.chain(GPU, 700, None, clock)
    assert first == winner and set(rest) == {"polar", "gesvdj", "gesvd", "float64"} - {winner}
    assert clock.timed == [("polar", 1024), ("gesvdj", 1024)]


def test_a_size_is_timed_once_on_a_machine(machine, monkeypatch):
    clock = Clock("gesvdj")
    for size in (600, 1024, 513):
        drivers.chain(GPU, size, None, clock)
    another_process()
    assert drivers.chain(GPU, 1000, None, clock)[0] == "gesvdj"
    assert len(clock.timed) == 2
    drivers.chain(GPU, 4096, None, clock)
    assert clock.timed[2:] == [("polar", 2048), ("gesvdj", 2048)]
    assert json.loads(machine.read_text()) == {"some GPU": {"1024": "gesvdj", "2048": "gesvdj"}}
    assert [path.name for path in machine.parent.iterdir()] == [machine.name]

    # another kind of GPU, or another torch, has answers of its own
    monkeypatch.setattr(drivers, "machine", lambda device: "another")
    assert drivers.chain(GPU, 1000, None, Clock("polar"))[0] == "polar"
    assert json.loads(machine.read_text()).keys() == {"some GPU", "another"}


@pytest.mark.parametrize("name", ["jacobi", "gesvd", "float64"])
def test_a_driver_that_is_no_candidate_is_timed_anew(machine, name):
    machine.parent.mkdir(parents=True)
    machine.write_text(json.dumps({"some GPU": {"1024": name}}))
    assert drivers.chain(GPU, 1024, None, Clock("gesvdj"))[0] == "gesvdj"
    assert json.loads(machine.read_text()) == {"some GPU": {"1024": "gesvdj"}}


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '"text"', '{"some GPU": 3}', '{"some GPU": {"1024": "magic"}}', '{"some GPU": {"1024": []}}'],
)
def test_a_damaged_file_is_as_none(machine, content):
    machine.parent.mkdir(parents=True)
    machine.write_text(content)
    assert drivers.chain(GPU, 1024, None, Clock("gesvdj"))[0] == "gesvdj"
    assert json.loads(machine.read_text()) == {"some GPU": {"1024": "gesvdj"}}


def test_a_home_that_cannot_be_written_to_costs_a_probe(machine):
    # a file where the directory should be
    machine.parent.parent.write_text("")
    for _ in range(2):
        clock = Clock("polar")
        assert drivers.chain(GPU, 1024, None, clock)[0] == "polar" and len(clock.timed) == 2
        another_process()


def test_a_named_driver_is_not_timed():
    clock = Clock("polar")
    assert drivers.chain(GPU, 64, "gesvd", clock) == ("gesvd", "polar", "gesvdj", "float64")
    assert drivers.chain(torch.device("cpu"), 64, None, clock) == ("gram", "gesdd", "float64")
    assert drivers.chain(torch.device("cpu"), 64, None, clock, torch.float64) == ("gesdd", "float64")
    assert drivers.chain(torch.device("mps"), 64, None, clock) == ("float64",)
    assert not clock.timed
    with pytest.raises(ValueError, match="driver must be None or one of polar, gesvdj, gesvd, float64 on cuda"):
        drivers.chain(GPU, 64, "gesdd", clock)


def test_what_other_processes_decided_meanwhile_stays(machine):
    drivers.chain(GPU, 64, None, Clock("polar"))
    stored = json.loads(machine.read_text())
    stored["some GPU"]["1024"] = "gesvdj"
    machine.write_text(json.dumps({**stored, "another": {"64": "polar"}}))
    drivers.chain(GPU, 128, None, Clock("polar"))
    kept = {"64": "polar", "128": "polar", "1024": "gesvdj"}
    assert json.loads(machine.read_text()) == {"some GPU": kept, "another": {"64": "polar"}}
