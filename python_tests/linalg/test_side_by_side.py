"""Many decompositions at once: the same bits as one by one, no more memory than allowed, and what ends them early."""

import gc
import json
import math
import sys
import threading
import time
import weakref
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import gsr_kernels
from gsr_kernels import GSR, SpectralBasis, load_bases
from gsr_kernels.__main__ import main
from gsr_kernels.linalg import drivers, side_by_side
from gsr_kernels.linalg.side_by_side import ARRANGEMENTS, TIMED, WORTH, Job, decompose_all, svd_bytes

CPU, GPU = torch.device("cpu"), torch.device("cuda")
THREADED = [name for name in ARRANGEMENTS if name.isdigit() and name != "1"]
SHAPES = [(24, 16), (40, 16), (16, 24), (24, 16), (3, 8, 12), (24, 16), (9, 1), (24, 16)]


@pytest.fixture
def weights():
    return [torch.randn(shape) for shape in SHAPES]


def jobs_of(weights, of=SpectralBasis.of):
    """Equal ones may be a batch, and all matrices go by threads; a 3-D weight goes by itself."""
    return [Job(W.shape, CPU, lambda W=W: W, of, batch_key=W.shape if W.ndim == 2 else None) for W in weights]


def counted_jobs(of):
    """Jobs that call ``of`` with the place of their weight."""
    return [Job(W.shape, CPU, lambda W=W: W, lambda W, i=i: of(i), batch_key=W.shape) for i, W in enumerate(of.weights)]


def described(shape, device=CPU, **settings):
    """A job of which nothing but the description is asked."""
    return Job(shape, device, lambda: torch.empty(shape), SpectralBasis.of, **settings)


def same(one, other):
    equal = (torch.equal(getattr(one, factor), getattr(other, factor)) for factor in ("U", "S", "Vh"))
    return all(equal) and one.fingerprint == other.fingerprint


@pytest.mark.parametrize("arrangement", ["1", *THREADED])
def test_the_bits_are_those_of_each_alone(weights, arrangement):
    found = dict(decompose_all(jobs_of(weights), arrangement))
    assert len(found) == len(weights)
    assert all(same(found[place], SpectralBasis.of(W)) for place, W in enumerate(weights))


def test_a_batch_holds_what_is_alike(weights):
    asked = []

    def of(W):
        asked.append(tuple(W.shape))
        return SpectralBasis.of(W)

    found = dict(decompose_all(jobs_of(weights, of), "batch"))
    assert sorted(asked) == sorted([(4, 24, 16), (40, 16), (16, 24), (3, 8, 12), (9, 1)])
    for place, W in enumerate(weights):
        alone, basis = SpectralBasis.of(W), found[place]
        assert basis.fingerprint == alone.fingerprint and basis.shape == W.shape
        torch.testing.assert_close(basis.S, alone.S)
        torch.testing.assert_close(basis.U * basis.S.unsqueeze(-2) @ basis.Vh, W, rtol=1e-4, atol=1e-5)
        # a part of a batch would keep all of it
        assert basis.U.untyped_storage().nbytes() == basis.U.nbytes


def test_batches_are_bounded(weights, monkeypatch):
    asked = []

    def of(W):
        asked.append(W.shape[:-2].numel())
        return SpectralBasis.of(W)

    jobs = jobs_of([torch.randn(8, 6)] * 21, of)
    assert len(dict(decompose_all(jobs, "batch"))) == 21
    monkeypatch.setattr(side_by_side, "BATCH_BYTES", 3 * svd_bytes((8, 6)))
    assert len(dict(decompose_all(jobs, "batch"))) == 21
    monkeypatch.setattr(side_by_side, "_room", lambda device: svd_bytes((8, 6)))
    assert len(dict(decompose_all(jobs, "batch"))) == 21
    assert asked == [4] * 5 + [1] + [3] * 7 + [1] * 21


class Counted:
    """Decompositions that take a while, and how many there are at a time."""

    def __init__(self, weights, spoil=None):
        self.weights, self.spoil = weights, spoil
        self.now, self.most, self.begun, self.lock = 0, 0, [], threading.Lock()

    def __call__(self, place):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.begun.append(place)
        try:
            time.sleep(0.02)
            if self.spoil is not None:
                self.spoil(self, place)
            return SpectralBasis.of(self.weights[place])
        finally:
            with self.lock:
                self.now -= 1


def meeting(count):
    """Has the first so many, but for the one before them all, wait for each other."""
    barrier = threading.Barrier(count)

    def spoil(counted, place):
        if 1 <= place <= count:
            barrier.wait(10)

    return spoil


def equal_weights(count=12):
    return [torch.randn(8, 6) for _ in range(count)]


@pytest.mark.parametrize("arrangement", THREADED)
def test_so_many_are_at_once(arrangement):
    of = Counted(equal_weights(), meeting(int(arrangement)))
    assert len(dict(decompose_all(counted_jobs(of), arrangement))) == 12
    assert of.most == int(arrangement)


@pytest.mark.parametrize(("room", "most"), [(0, 1), (2.5, 2), (3, 3)])
def test_what_they_hold_is_bounded(monkeypatch, room, most):
    asked = []
    monkeypatch.setattr(side_by_side, "_room", lambda device: asked.append(0) or room * svd_bytes((8, 6)))
    of = Counted(equal_weights(), meeting(most))
    assert len(dict(decompose_all(counted_jobs(of), "4"))) == 12
    # for each that begins beside another
    assert of.most == most and len(asked) >= 11 - 11 // most


def test_float64_takes_twice_the_room():
    one, other = (described((8, 6), dtype=dtype) for dtype in (torch.float32, torch.float64))
    assert other.nbytes == 2 * one.nbytes


def test_the_costly_ones_are_first():
    weights = [torch.randn(8, n) for n in (6, 30, 5, 20, 8)]
    for arrangement in ("1", "batch"):
        of = Counted(weights)
        assert len(dict(decompose_all(counted_jobs(of), arrangement))) == 5
        # those of 8 directions, then those of fewer
        assert of.begun == [1, 3, 4, 0, 2]


def test_what_does_not_fit_beside_others_is_done_alone():
    def spoil(counted, place):
        if place in (3, 4) and counted.begun.count(place) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        assert place not in (3, 4) or counted.now == 1

    of = Counted(equal_weights(), spoil)
    found = dict(decompose_all(counted_jobs(of), "4"))
    assert sorted(found) == list(range(12)) and sorted(of.begun[-2:]) == [3, 4]

    def never(counted, place):
        raise torch.OutOfMemoryError("CUDA out of memory")

    for arrangement in ("1", *THREADED):
        with pytest.raises(torch.OutOfMemoryError):
            list(decompose_all(counted_jobs(Counted(of.weights, never)), arrangement))


def test_nothing_is_held_of_what_did_not_fit():
    workspaces = []

    def spoil(counted, place):
        if place == 3:
            assert all(workspace() is None for workspace in workspaces)
            workspace = torch.zeros(8)
            workspaces.append(weakref.ref(workspace))
            if len(workspaces) == 1:
                raise torch.OutOfMemoryError("CUDA out of memory")

    # not by the collector's help
    gc.disable()
    try:
        of = Counted(equal_weights(), spoil)
        assert len(dict(decompose_all(counted_jobs(of), "4"))) == 12 and len(workspaces) == 2
    finally:
        gc.enable()


@pytest.mark.parametrize("arrangement", ["1", *THREADED])
def test_no_basis_is_kept_that_was_handed_over(arrangement):
    weights, bases = equal_weights(), []

    def of(W):
        bases.append(SpectralBasis.of(W))
        return bases.pop()

    given = []
    for _, basis in decompose_all(jobs_of(weights, of), arrangement):
        assert all(before() is None for before in given)
        given.append(weakref.ref(basis.U))
        del basis
    assert len(given) == 12


def test_a_batch_that_does_not_fit_is_taken_apart():
    weights = equal_weights()

    def of(W):
        if W.ndim > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return SpectralBasis.of(W)

    found = dict(decompose_all(jobs_of(weights, of), "batch"))
    assert all(same(found[place], SpectralBasis.of(W)) for place, W in enumerate(weights))


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("arrangement", THREADED)
def test_one_that_fails_ends_the_others(arrangement, kind):
    def spoil(counted, place):
        if place == 2:
            raise kind("of the third")

    of = Counted(equal_weights(40), spoil)
    before = threading.active_count()
    with pytest.raises(kind, match="of the third"):
        list(decompose_all(counted_jobs(of), arrangement))
    # those that had begun are done, and none has begun since
    assert of.now == 0 and len(of.begun) <= 3 + 2 * int(arrangement) and threading.active_count() == before


def test_a_caller_who_leaves_ends_them():
    of = Counted(equal_weights(40))
    found = decompose_all(counted_jobs(of), "4")
    next(found), next(found)
    found.close()
    assert of.now == 0 and len(of.begun) < 12


def test_warnings_arrive(monkeypatch):
    weights = equal_weights()
    module = sys.modules["gsr_kernels.linalg.svd"]
    drive = module._drive

    def spoilt(W, driver):
        if driver == "gram":
            raise RuntimeError("did not converge")
        return drive(W, driver)

    monkeypatch.setattr(module, "_drive", spoilt)
    with pytest.warns(UserWarning, match="gesdd takes over"):
        assert len(dict(decompose_all(jobs_of(weights), "4"))) == 12


@pytest.fixture
def arranged(monkeypatch):
    """Chooses for a CPU what a GPU would be given."""

    def choose(arrangement):
        monkeypatch.setattr(side_by_side, "arranged", lambda kind, count: arrangement)

    return choose


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_a_model(arrangement, arranged):
    model = nn.Sequential(nn.Linear(12, 8), *(nn.Linear(8, 8) for _ in range(5)), nn.Linear(8, 20))

    def attached(**settings):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return gsr_kernels.attach(model, optimizer, rho=0.5, targets=".*", **settings)

    alone = attached().bases
    arranged(arrangement)
    found = attached().bases
    assert list(found) == list(alone)
    for name, basis in found.items():
        assert basis.fingerprint == alone[name].fingerprint
        assert arrangement == "batch" or same(basis, alone[name])
        torch.testing.assert_close(basis.S, alone[name].S)
    heads = attached(heads={"3.weight": 2}).bases
    assert heads["3.weight"].shape == (2, 4, 8)
    with torch.no_grad():
        model[4].weight[1, 2] = torch.nan
    with pytest.raises(ValueError, match=r"4\.weight: weight holds NaN"):
        attached()


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("flags", [[], ["--randomized"]], ids=["exact", "randomized"])
def test_the_command(arrangement, flags, arranged, tmp_path, capsys):
    from safetensors.torch import save_file

    tensors = {f"layers.{i}.weight": torch.randn(12, 10) for i in range(9)} | {"layers.9.weight": torch.randn(20, 16)}
    save_file(tensors, tmp_path / "model.safetensors")
    arranged(arrangement)
    out = tmp_path / "model.bases"
    assert main(["bases", str(tmp_path), "--out", str(out), "--rank", "3", *flags]) == 0
    bases = load_bases(out)
    for name, W in tensors.items():
        alone = SpectralBasis.of(W, 3, randomized=bool(flags))
        assert bases[name].fingerprint == alone.fingerprint and bases[name].randomized == bool(flags)
        torch.testing.assert_close(bases[name].S, alone.S)
    tensors["layers.5.weight"][0, 0] = torch.inf
    save_file(tensors, tmp_path / "model.safetensors")
    out.unlink()
    assert main(["bases", str(tmp_path), "--out", str(out), "--rank", "3"]) == 2
    assert "layers.5.weight: weight holds NaN or Inf" in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize("arrangement", ARRANGEMENTS[1:])
def test_what_else_a_method_does_is_done_by_the_caller_one_by_one(arrangement, arranged):
    called = []

    @dataclass(frozen=True)
    class Own(GSR):
        def decompose(self, name, W, rank, heads):
            called.append((threading.current_thread(), W.ndim))
            return super().decompose(name, W, rank, heads)

    arranged(arrangement)
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(9)))
    gsr_kernels.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), method=Own(rho=0.5), targets=".*")
    assert called == [(threading.main_thread(), 2)] * 9


def test_a_consumer_that_fails_ends_them(arranged, tmp_path, monkeypatch):
    from safetensors.torch import save_file

    save_file({f"layers.{i}.weight": torch.randn(12, 10) for i in range(40)}, tmp_path / "model.safetensors")
    arranged("4")
    of, begun, added, full = SpectralBasis.of, [], [], OSError("disk full")

    def slow(*args):
        begun.append(args)
        time.sleep(0.01)
        return of(*args)

    def fails(cost):
        added.append(cost)
        # the first comes before there are threads
        if len(added) == 3:
            raise full

    monkeypatch.setattr(SpectralBasis, "of", slow)
    monkeypatch.setattr("gsr_kernels.cli.bases.progress", lambda *args: nullcontext(SimpleNamespace(update=fails)))
    # the error is kept, and its frames with it
    assert main(["bases", str(tmp_path), "--out", str(tmp_path / "model.bases"), "--rank", "3"]) != 0
    assert full.__traceback__ and len(begun) < 12
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decomposition")]


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """One that is not there, and has room."""
    monkeypatch.setattr(drivers, "small_svd_limit", lambda device: 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(drivers, "machine", lambda device: "some GPU")
    monkeypatch.setattr(side_by_side, "_room", lambda device: 1e12)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: False)
    drivers.decisions._known.clear()
    yield tmp_path / "gsr_kernels" / "svd_drivers.json"
    drivers.decisions._known.clear()


MANY = WORTH * 2 * TIMED * len(ARRANGEMENTS)


def test_the_fastest_is_timed_once_for_a_kind(monkeypatch, gpu):
    timed = []

    def seconds(kind, arrangement):
        timed.append((kind.size, kind.sketch, arrangement))
        return 1.0 if arrangement == ("4" if kind.sketch is None else "batch") else 2.0

    monkeypatch.setattr(side_by_side, "_seconds", seconds)
    exact, sketched = (
        described((900, 1700), GPU, batch_key=0).kind,
        described((900, 1700), GPU, sketch=50, batch_key=0).kind,
    )
    # a few are not worth a probe, nor is one made where there is no room for it, and LAPACK is not idle
    assert side_by_side.arranged(exact, MANY - 1) == "1"
    assert side_by_side.arranged(exact._replace(device=CPU), MANY) == "1"
    with monkeypatch.context() as full:
        full.setattr(side_by_side, "_room", lambda device: TIMED * svd_bytes((1024, 1024)) - 1)
        assert side_by_side.arranged(exact, MANY) == "1"
    assert not timed and not gpu.exists()
    for _ in range(2):
        assert side_by_side.arranged(exact, MANY) == "4" and side_by_side.arranged(sketched, MANY) == "batch"
        # what is known serves a few as well
        assert side_by_side.arranged(exact, 2) == "4"
        drivers.decisions._known.clear()
    assert timed == [(1024, None, name) for name in ARRANGEMENTS] + [(1024, 64, name) for name in ARRANGEMENTS]
    (kept,) = json.loads(gpu.read_text()).values()
    assert kept == {"1024 in float32, side by side": "4", "1024 by a sketch of 64 in float32, side by side": "batch"}


def test_there_are_no_batches_where_bits_are_to_be_the_same(monkeypatch, gpu):
    monkeypatch.setattr(side_by_side, "_seconds", lambda kind, arrangement: -len(arrangement))
    kind = described((64, 64), GPU, batch_key=0).kind
    assert side_by_side.arranged(kind, MANY) == "batch"
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert side_by_side.arranged(kind, MANY) == "1"


def test_jobs_of_a_kind_share_a_decision(monkeypatch):
    kinds = {described(shape, CPU, batch_key=0).kind for shape in ((1000, 2000), (513, 4096), (1024, 1024))}
    (kind,) = kinds
    assert kind == (CPU, "1024", 1024, torch.float32, None)
    assert described((5000, 9000), CPU, batch_key=0).kind == kind._replace(key="2048", size=2048)
    assert described((1000, 2000), CPU, dtype=torch.float64, batch_key=0).kind == kind._replace(dtype=torch.float64)
    assert described((1000, 2000), CPU, sketch=200, batch_key=0).kind == kind._replace(sketch=256)
    assert described((3, 700, 600), CPU).kind is None
    # one decision of the drivers each, whatever is rotated
    monkeypatch.setattr(drivers, "small_svd_limit", lambda device: 160)
    sizes = {size: described((size, size), GPU, batch_key=0).kind.key for size in (128, 129, 160, 161, 256)}
    assert list(sizes.values()) == ["128 with jacobi", "160 with jacobi", "160 with jacobi", "256", "256"]
    assert described((160, 160), GPU, dtype=torch.float64, batch_key=0).kind.key == "256"


@pytest.mark.parametrize("sketch", [None, 4])
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_the_probe_runs_as_it_is_named(monkeypatch, arrangement, sketch):
    """On a CPU: everything but the device."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    together, batches = threading.Barrier(TIMED - 1), []
    of = SpectralBasis.of

    def watched(W, *args, **settings):
        batches.append(W.shape[:-2].numel())
        # but for the one before them
        if arrangement == "4" and len(batches) % TIMED != 1:
            together.wait(10)
        return of(W, *args, **settings)

    monkeypatch.setattr(SpectralBasis, "of", watched)
    kind = described((16, 16), CPU, sketch=sketch, batch_key=0).kind
    assert 0 < side_by_side._seconds(kind, arrangement) < math.inf
    assert batches == [TIMED] * 2 if arrangement == "batch" else [1] * 2 * TIMED


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, ValueError, RuntimeError])
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_an_arrangement_that_fails_its_probe_is_not_the_fastest(monkeypatch, arrangement, error):
    def fails(*args, **settings):
        raise error("of the probe")

    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(SpectralBasis, "of", fails)
    assert side_by_side._seconds(described((16, 16), CPU, batch_key=0).kind, arrangement) == math.inf
