"""Many decompositions at once: the same bits as one by one, no more memory than allowed, and what ends them early."""

import json
import sys
import threading
import time

import pytest
import torch
from torch import nn

import gsr_kernels
from gsr_kernels import SpectralBasis, load_bases, save_bases, side_by_side
from gsr_kernels.__main__ import main
from gsr_kernels.linalg import drivers
from gsr_kernels.linalg.cost import svd_bytes
from gsr_kernels.side_by_side import ARRANGEMENTS, Piece, decomposed, of_several

CPU, GPU = torch.device("cpu"), torch.device("cuda")
THREADED = [name for name in ARRANGEMENTS if name.isdigit() and name != "1"]
SHAPES = [(24, 16), (40, 16), (16, 24), (24, 16), (3, 8, 12), (24, 16), (9, 1), (24, 16)]


@pytest.fixture
def weights():
    return [torch.randn(shape) for shape in SHAPES]


def pieces_of(weights):
    return [Piece(W.shape, CPU, alike=W.shape if W.ndim == 2 else None) for W in weights]


def of_these(weights):
    return lambda places: of_several([weights[place] for place in places], SpectralBasis.of)


def same(one, other):
    equal = (torch.equal(getattr(one, factor), getattr(other, factor)) for factor in ("U", "S", "Vh"))
    return all(equal) and one.fingerprint == other.fingerprint


@pytest.mark.parametrize("arrangement", ["1", *THREADED])
def test_the_bits_are_those_of_each_alone(weights, arrangement):
    found = dict(decomposed(pieces_of(weights), of_these(weights), arrangement))
    assert len(found) == len(weights)
    assert all(same(found[place], SpectralBasis.of(W)) for place, W in enumerate(weights))


def test_a_batch_holds_what_is_alike(weights):
    asked = []

    def of(places):
        asked.append(places)
        return of_these(weights)(places)

    found = dict(decomposed(pieces_of(weights), of, "batch"))
    assert sorted(map(sorted, asked)) == [[0, 3, 5, 7], [1], [2], [4], [6]]
    for place, W in enumerate(weights):
        alone, basis = SpectralBasis.of(W), found[place]
        assert basis.fingerprint == alone.fingerprint and basis.shape == W.shape
        torch.testing.assert_close(basis.S, alone.S)
        torch.testing.assert_close(basis.U * basis.S.unsqueeze(-2) @ basis.Vh, W, rtol=1e-4, atol=1e-5)
        # a part of a batch would keep all of it
        assert basis.U.untyped_storage().nbytes() == basis.U.nbytes


def test_batches_are_bounded(weights, monkeypatch):
    pieces, asked = [Piece((8, 6), CPU, alike=0)] * 21, []

    def of(places):
        asked.append(len(places))
        return of_several([torch.randn(8, 6) for _ in places], SpectralBasis.of)

    assert len(dict(decomposed(pieces, of, "batch"))) == 21
    monkeypatch.setattr(side_by_side, "BATCH_BYTES", 3 * svd_bytes((8, 6)))
    assert len(dict(decomposed(pieces, of, "batch"))) == 21
    assert asked == [8, 8, 5] + [3] * 7


class Counted:
    """Decompositions that take a while, and how many there are at a time."""

    def __init__(self, weights, spoil=None):
        self.weights, self.spoil = weights, spoil
        self.now, self.most, self.begun, self.lock = 0, 0, [], threading.Lock()

    def __call__(self, places):
        (place,) = places
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.begun.append(place)
        try:
            time.sleep(0.02)
            if self.spoil is not None:
                self.spoil(self, place)
            return [SpectralBasis.of(self.weights[place])]
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
    assert len(dict(decomposed(pieces_of(of.weights), of, arrangement))) == 12
    assert of.most == int(arrangement)


@pytest.mark.parametrize(("room", "most"), [(0, 1), (2.5, 2), (3, 3)])
def test_what_they_hold_is_bounded(monkeypatch, room, most):
    monkeypatch.setattr(side_by_side, "_room", lambda device: room * svd_bytes((8, 6)))
    of = Counted(equal_weights(), meeting(most))
    assert len(dict(decomposed(pieces_of(of.weights), of, "4"))) == 12
    assert of.most == most


def test_the_costly_ones_are_first():
    weights = [torch.randn(8, n) for n in (6, 30, 5, 20, 8)]
    of = Counted(weights)
    assert len(dict(decomposed(pieces_of(weights), of, "2"))) == 5
    # those of 8 directions, then those of fewer
    assert of.begun == [1, 3, 4, 0, 2]


def test_what_does_not_fit_beside_others_is_done_alone():
    def spoil(counted, place):
        if place in (3, 4) and counted.begun.count(place) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        assert place not in (3, 4) or counted.now == 1

    of = Counted(equal_weights(), spoil)
    found = dict(decomposed(pieces_of(of.weights), of, "4"))
    assert sorted(found) == list(range(12)) and sorted(of.begun[-2:]) == [3, 4]

    def never(counted, place):
        raise torch.OutOfMemoryError("CUDA out of memory")

    for arrangement in ARRANGEMENTS[:-1]:
        with pytest.raises(torch.OutOfMemoryError):
            list(decomposed(pieces_of(of.weights), Counted(of.weights, never), arrangement))


def test_a_batch_that_does_not_fit_is_taken_apart():
    weights = equal_weights()

    def of(places):
        if len(places) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return of_these(weights)(places)

    found = dict(decomposed(pieces_of(weights), of, "batch"))
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
        list(decomposed(pieces_of(of.weights), of, arrangement))
    # those that had begun are done, and none has begun since
    assert of.now == 0 and len(of.begun) <= 3 + 2 * int(arrangement) and threading.active_count() == before


def test_a_caller_who_leaves_ends_them():
    of = Counted(equal_weights(40))
    found = decomposed(pieces_of(of.weights), of, "4")
    next(found), next(found)
    found.close()
    assert of.now == 0 and len(of.begun) < 12


def test_warnings_arrive(monkeypatch):
    weights = equal_weights()
    module = sys.modules["gsr_kernels.linalg.svd"]
    drive = module._drive

    def spoilt(W, driver):
        if driver == "gesdd":
            raise RuntimeError("did not converge")
        return drive(W, driver)

    monkeypatch.setattr(module, "_drive", spoilt)
    with pytest.warns(UserWarning, match="float64 takes over"):
        assert len(dict(decomposed(pieces_of(weights), of_these(weights), "4"))) == 12


@pytest.fixture
def arranged(monkeypatch):
    """Chooses for a CPU what a GPU would be given."""

    def choose(arrangement):
        monkeypatch.setattr(side_by_side, "arranged", lambda *kind: arrangement)

    return choose


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_a_model(arrangement, arranged, tmp_path):
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
    save_bases(tmp_path / "again.bases", bases)
    for name, W in tensors.items():
        alone = SpectralBasis.of(W, 3, randomized=bool(flags))
        assert bases[name].fingerprint == alone.fingerprint and bases[name].randomized == bool(flags)
        torch.testing.assert_close(bases[name].S, alone.S)
    tensors["layers.5.weight"][0, 0] = torch.inf
    save_file(tensors, tmp_path / "model.safetensors")
    out.unlink()
    assert main(["bases", str(tmp_path), "--out", str(out), "--rank", "3"]) == 2
    assert "layers.5.weight: weight holds NaN or Inf" in capsys.readouterr().err and not out.exists()


def test_the_fastest_is_timed_once_for_a_kind(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(drivers, "kind", lambda device: "some GPU")
    drivers._known.cache_clear()
    timed = []

    def seconds(device, size, sketch, arrangement):
        timed.append((size, sketch, arrangement))
        return 1.0 if arrangement == ("4" if sketch is None else "batch") else 2.0

    monkeypatch.setattr(side_by_side, "_seconds", seconds)
    for _ in range(2):
        assert side_by_side.arranged(GPU, 1024, None, 8) == "4"
        assert side_by_side.arranged(GPU, 1024, 64, 100) == "batch"
        drivers._known.cache_clear()
    assert timed == [(1024, None, name) for name in ARRANGEMENTS] + [(1024, 64, name) for name in ARRANGEMENTS]
    (kept,) = json.loads((tmp_path / "gsr_kernels" / "svd_drivers.json").read_text()).values()
    assert kept == {"1024, side by side": "4", "1024 by a sketch of 64, side by side": "batch"}
    # a few are not worth a probe, and LAPACK is not idle
    assert side_by_side.arranged(GPU, 1024, None, 7) == side_by_side.arranged(CPU, 1024, None, 100) == "1"
    assert len(timed) == 10


def test_pieces_of_a_kind_share_a_decision():
    kinds = [Piece(shape, CPU).kind for shape in ((1000, 2000), (513, 4096), (3, 700, 600), (5000, 9000))]
    assert kinds == [(CPU, 1024, None)] * 3 + [(CPU, 2048, None)]
    assert Piece((1000, 2000), CPU, 200).kind == (CPU, 1024, 256)


@pytest.mark.parametrize("sketch", [None, 4])
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_the_probe_runs(monkeypatch, arrangement, sketch):
    """On a CPU: everything but the device."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    assert 0 < side_by_side._seconds(CPU, 16, sketch, arrangement) < 5
