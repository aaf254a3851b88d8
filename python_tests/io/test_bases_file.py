"""The file of a model's bases: what it gives back, how it is written, and what is refused."""

import json
import os
import resource
import struct
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file

from gsr_kernels import SpectralBasis, load_bases, rescale_gradient, save_bases
from gsr_kernels.io.bases_file import FORMAT_VERSION, writing_bases


@contextmanager
def room_for(size):
    """Files cannot grow beyond so many bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def bases():
    torch.manual_seed(1)
    return {
        "a.weight": SpectralBasis.of(torch.randn(6, 4)),
        "b.weight": SpectralBasis.of(torch.randn(8, 6), rank=2, heads=(3, 1)),
        "c.weight": SpectralBasis.of(torch.randn(5, 5), precision="fp16"),
    }


def test_file_round_trip(tmp_path):
    path = tmp_path / "bases.safetensors"
    save_bases(path, bases())
    loaded = load_bases(path)
    assert loaded.keys() == bases().keys()
    for name, basis in bases().items():
        for attribute in ("U", "S", "Vh"):
            assert torch.equal(getattr(loaded[name], attribute), getattr(basis, attribute))
        assert loaded[name].fingerprint == basis.fingerprint and loaded[name].head_dim == basis.head_dim
    assert load_bases(path, ["b.weight", "absent"]).keys() == {"b.weight"}
    assert [file.name for file in tmp_path.iterdir()] == ["bases.safetensors"]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no directory"):
        save_bases(tmp_path / "absent" / "bases.safetensors", bases())


def test_unreadable_files_are_refused_with_the_reason(tmp_path):
    path = tmp_path / "bases.safetensors"
    with pytest.raises(FileNotFoundError, match="save_bases"):
        load_bases(path)
    save_bases(path, bases())
    whole = path.read_bytes()
    for length in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="truncated or damaged"):
            load_bases(path)
    (size,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + size])
    for key, value, named in [
        ("format_version", str(FORMAT_VERSION + 1), "newer"),
        ("format", "other", "not a bases"),
        ("format_version", "2.0", "newer"),
        ("bases", "{", "damaged"),
        ("bases", "null", "damaged"),
        ("bases", '{"a.weight": null}', "damaged"),
        ("bases", header["__metadata__"]["bases"].replace('"head_dim": null', '"head_dim": 7'), "damaged"),
    ]:
        changed = json.dumps({**header, "__metadata__": {**header["__metadata__"], key: value}}).encode()
        path.write_bytes(struct.pack("<Q", len(changed)) + changed + whole[8 + size :])
        with pytest.raises(ValueError, match=named) as refusal:
            load_bases(path)
        assert str(path) in str(refusal.value)


def test_a_full_disk_leaves_the_old_file(tmp_path):
    path = tmp_path / "bases.safetensors"
    save_bases(path, bases())
    before = path.read_bytes()
    with room_for(1000), pytest.raises(OSError, match="File too large"):
        save_bases(path, bases())
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def on_meta(basis):
    return SpectralBasis(basis.U.to("meta"), basis.S.to("meta"), basis.Vh.to("meta"))


def test_bases_come_one_by_one_in_any_order(tmp_path):
    whole, streamed = tmp_path / "whole.safetensors", tmp_path / "streamed.safetensors"
    save_bases(whole, bases(), {"key": "value"})
    planned = {name: on_meta(basis) for name, basis in bases().items()}
    with writing_bases(streamed, planned, {"key": "value"}) as add:
        for name, basis in reversed(bases().items()):
            add(name, basis)
    loaded = load_bases(streamed)
    assert list(loaded) == list(bases())
    for name, basis in load_bases(whole).items():
        assert loaded[name].fingerprint == basis.fingerprint and loaded[name].head_dim == basis.head_dim
        assert torch.equal(loaded[name].U, basis.U) and torch.equal(loaded[name].Vh, basis.Vh)
    # any reader of the format reads it
    assert all(torch.equal(load_file(streamed)[key], tensor) for key, tensor in load_file(whole).items())


def test_what_was_not_planned_is_no_file(tmp_path):
    path = tmp_path / "bases.safetensors"
    planned = {name: on_meta(basis) for name, basis in bases().items()}
    with pytest.raises(ValueError, match=r"not written: \['a.weight"), writing_bases(path, planned) as add:
        for name in ("b.weight", "c.weight"):
            add(name, bases()[name])
    with pytest.raises(ValueError, match=r"a\.weight\.U was to be"), writing_bases(path, planned) as add:
        add("a.weight", bases()["c.weight"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_who_may_read_it_is_the_users_choice(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        save_bases(tmp_path / "bases.safetensors", bases())
    finally:
        os.umask(before)
    assert (tmp_path / "bases.safetensors").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("shape", [(6, 12), (10, 33), (5, 768), (4, 64), (2, 6, 12)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_read_multiplies_to_the_same_bits(tmp_path, shape, dtype):
    W, G = torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)
    # their elements move the others in the file by every multiple of an element
    odd = {f"before.{i}": SpectralBasis.of(torch.randn(1, i, dtype=dtype)) for i in (1, 2, 3)}
    for count in range(4):
        bases = dict(list(odd.items())[:count]) | {"weight": SpectralBasis.of(W)}
        save_bases(tmp_path / "bases", bases)
        stored = load_bases(tmp_path / "bases")["weight"]
        # torch's own allocations begin at multiples of 64 bytes
        assert all(factor.data_ptr() % 64 == 0 for factor in (stored.U, stored.S, stored.Vh))
        mine, theirs = (rescale_gradient(G, basis, rho=0.5) for basis in (bases["weight"], stored))
        assert torch.equal(mine, theirs)
