"""Files that appear whole or not at all, and what killed writers left beside them."""

import platform
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from gsr_kernels.io.atomic import replacing


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_it_appears_at_the_end(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and names(tmp_path) == ["file"]
    with pytest.raises(KeyError), replacing(path) as partial:
        partial.write_text("broken")
        raise KeyError
    assert path.read_text() == "new" and names(tmp_path) == ["file"]


def test_others_may_read_what_safetensors_writes(tmp_path):
    (tmp_path / "plain").touch()
    with replacing(tmp_path / "file") as partial:
        save_file({"a": torch.ones(2)}, partial)
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_what_dead_processes_left_goes(tmp_path):
    path = tmp_path / "[file].csv"
    killed = "import os, sys; from gsr_kernels.io.atomic import replacing\nwith replacing(sys.argv[1]) as partial:\n"
    killed += " partial.write_text('half'); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", killed, str(path)], check=False).returncode == -9
    assert len(names(tmp_path)) == 1

    # of another machine
    kept = f".{path.name}.elsewhere-{platform.node()}.1.partial"
    (tmp_path / kept).write_text("half")
    with replacing(path) as partial:
        partial.write_text("whole")
    assert names(tmp_path) == sorted([path.name, kept])


def test_two_who_write_at_once(tmp_path):
    path = tmp_path / "file"
    with replacing(path) as first:
        first.write_text("first")
        with replacing(path) as second:
            second.write_text("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first" and names(tmp_path) == ["file"]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_one(tmp_path, there):
    target, link = tmp_path / "elsewhere" / "file", tmp_path / "link"
    target.parent.mkdir()
    if there:
        target.write_text("old")
    link.symlink_to(target)
    with replacing(link) as partial:
        partial.write_text("new")
    assert link.is_symlink() and target.read_text() == "new"
    assert names(tmp_path) == ["elsewhere", "link"] and names(target.parent) == ["file"]


def test_the_working_directory_may_change(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    with replacing("file") as partial:
        partial.write_text("new")
        monkeypatch.chdir("other")
    assert names(tmp_path) == ["file", "other"] and not names(tmp_path / "other")
