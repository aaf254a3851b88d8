"""Bases that a sketch finds, asked for by attach(), kept and found again."""

import pytest
import torch

from gsr_kernels import GSRAdamW, SpectralBasis, attach, load_bases
from gsr_kernels.methods import SR
from python_tests.optim.toy import make_model, take_steps


def begin(model=None, **settings):
    model = model or make_model()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    return model, optimizer, attach(model, optimizer, rho=0.7, **settings)


def names(handle):
    return {name for name, basis in handle.bases.items() if basis.randomized}


def test_the_basis_is_that_of_a_sketch():
    model, _, handle = begin(rank=3, randomized=True)
    for name, basis in handle.bases.items():
        expected = SpectralBasis.of(model.get_parameter(name), 3, randomized=True)
        assert basis.randomized and basis.fingerprint == expected.fingerprint
        assert all(torch.equal(getattr(basis, factor), getattr(expected, factor)) for factor in ("U", "S", "Vh"))
    fused = GSRAdamW(make_model(), rho=0.7, rank=3, randomized=True)
    assert names(fused.handle) == set(handle.bases)


def test_whole_bases_are_exact():
    with pytest.raises(ValueError, match="randomized needs a rank"):
        begin(randomized=True)
    _, _, handle = begin(rank={"1": 3}, randomized=True)
    assert names(handle) == {"1.weight"}


def test_methods_with_bases_of_their_own_are_refused():
    model = make_model()
    with pytest.raises(ValueError, match=r"randomized: SR\(.*bases of its own"):
        attach(model, torch.optim.AdamW(model.parameters()), SR(), rank=3, randomized=True)


def test_a_sketch_serves_no_run_that_wants_exact_bases(tmp_path):
    path = tmp_path / "bases.safetensors"
    *_, handle = begin(rank=3, randomized=True, bases=path)
    assert names(begin(rank=3, randomized=True, bases=path)[2]) == set(handle.bases)
    assert not names(begin(rank=3, bases=path)[2])
    # nothing is lost where a run that takes sketches finds exact bases
    exact = tmp_path / "exact.safetensors"
    begin(rank=3, bases=exact)
    assert not names(begin(rank=3, randomized=True, bases=exact)[2])
    assert all(basis.randomized for basis in load_bases(path).values())


def test_a_checkpoint_goes_on_with_its_sketch_alone(tmp_path):
    path = tmp_path / "bases.safetensors"
    model, optimizer, _ = begin(rank=3, randomized=True, bases=path)
    take_steps(model, optimizer, range(2))
    saved = optimizer.state_dict()
    _, resumed, handle = begin(model, rank=3)
    with pytest.raises(ValueError, match=f"needs those of 3 weights.*{path.name}"):
        resumed.load_state_dict(saved)
    handle.load_state_dict(saved["gsr_kernels"], bases=path)
    assert names(handle) == set(handle.bases)


@pytest.mark.parametrize("settings", [{"rank": 3}, {"rank": 2, "randomized": True}])
def test_a_checkpoint_finds_its_bases_in_the_file_of_attach_whatever_else_is_asked(tmp_path, settings):
    path = tmp_path / "bases.safetensors"
    model, optimizer, _ = begin(rank=3, randomized=True, bases=path)
    take_steps(model, optimizer, range(2))
    saved = optimizer.state_dict()
    _, resumed, handle = begin(model, bases=path, **settings)
    assert not handle.state_dict()["bases"]
    resumed.load_state_dict(saved)
    assert names(handle) == set(handle.bases) and {basis.rank for basis in handle.bases.values()} == {3}
    assert handle.state_dict()["bases"] == str(path)
