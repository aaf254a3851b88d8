"""What setup.py builds, and what it says of what it does not."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def build(monkeypatch):
    for name in ("GSR_KERNELS_CUDA", "TORCH_CUDA_ARCH_LIST", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    functions = runpy.run_path(str(ROOT / "setup.py"), run_name="setup")
    # run_path hands out a copy: what the functions see is their own
    return type(
        "Build", (), {"__getattr__": lambda _, name: functions[name], "names": functions["wanted"].__globals__}
    )()


@pytest.fixture
def torch_of(build, tmp_path):
    """A folder that looks like an installed torch."""

    def make(version, cuda):
        header = tmp_path / "torch" / "include" / "torch" / "csrc" / "stable" / "library.h"
        header.parent.mkdir(parents=True)
        header.write_text("")
        (tmp_path / "torch" / "version.py").write_text(f"__version__ = '{version}'\ncuda: Optional[str] = {cuda}\n")
        build.names.update(torch_folder=lambda: tmp_path / "torch", nvcc=lambda: "nvcc", ninja=lambda: "ninja")
        build.names.update(nvcc_version=lambda: "13.0")

    return make


@pytest.mark.parametrize(
    "listed, found",
    [
        ("", ["80", "90a", "100+PTX"]),
        ("9.0a", ["90a"]),
        ("8.0 9.0", ["80", "90"]),
        ("8.6; 12.0+PTX", ["86", "120+PTX"]),
        ("10.3f", ["103f"]),
    ],
)
def test_architectures(build, monkeypatch, listed, found):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    assert build.architectures() == found


@pytest.mark.parametrize("listed", ["Hopper", "90", "9.0+ptx", "8.0,sm_90"])
def test_an_architecture_that_is_none(build, torch_of, monkeypatch, capsys, listed):
    torch_of("2.11.0", "'13.0'")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    assert build.extensions() == [] and "TORCH_CUDA_ARCH_LIST must hold versions" in capsys.readouterr().out
    monkeypatch.setenv("GSR_KERNELS_CUDA", "1")
    with pytest.raises(SystemExit, match="TORCH_CUDA_ARCH_LIST must hold versions"):
        build.extensions()


def test_codes(build, monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0a;10.0+PTX")
    assert build.codes(build.architectures()) == [
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_100,code=sm_100",
        "-gencode=arch=compute_100,code=compute_100",
    ]


@pytest.mark.parametrize(
    "asked, version, cuda, built",
    [
        (None, "2.11.0+cu130", "'13.0'", True),
        (None, "2.10.0", "'12.8'", True),
        (None, "2.13.0+cpu", "None", False),
        ("1", "2.13.0+cpu", "None", True),
        ("0", "2.11.0+cu130", "'13.0'", False),
        (None, "2.9.1", "'12.8'", False),
    ],
)
def test_when_it_is_built(build, torch_of, monkeypatch, capsys, asked, version, cuda, built):
    torch_of(version, cuda)
    if asked is not None:
        monkeypatch.setenv("GSR_KERNELS_CUDA", asked)
    assert build.wanted() is built
    # one line where it is not, none where it is
    assert len(capsys.readouterr().out.splitlines()) == (not built)
    assert len(build.extensions()) == 2 * built


@pytest.mark.parametrize(
    "missing, reason",
    [
        ({"nvcc": lambda: None}, "nvcc was not found"),
        ({"nvcc_version": lambda: ""}, "nvcc --version names no release"),
        ({"torch_folder": lambda: None}, "torch >= 2.10 was not found"),
        ({"ninja": lambda: None}, "ninja was not found"),
    ],
)
def test_what_is_missing_is_named(build, torch_of, monkeypatch, capsys, missing, reason):
    torch_of("2.11.0", "'13.0'")
    build.names.update(missing)
    assert build.extensions() == []
    assert reason in capsys.readouterr().out
    monkeypatch.setenv("GSR_KERNELS_CUDA", "1")
    with pytest.raises(SystemExit, match=f"GSR_KERNELS_CUDA=1, but.*{reason}"):
        build.extensions()


@pytest.mark.parametrize("said", ["exit 3", "echo some other compiler", ""])
def test_an_nvcc_that_does_not_run(build, monkeypatch, tmp_path, said):
    compiler = tmp_path / "bin" / "nvcc"
    compiler.parent.mkdir()
    # without a first line the system does not run it at all
    compiler.write_text(f"#!/bin/sh\n{said}\n" if said else "\x7f")
    compiler.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert build.nvcc_version() == "" and build.extensions() == []


def test_a_torch_that_does_not_say_its_version(build, torch_of, tmp_path):
    torch_of("unknown", "None")
    assert build.torch_version(tmp_path / "torch") == ((0, 0), False)
    assert "torch >= 2.10 was not found" in build.obstacle()


def test_a_value_that_is_none(build, monkeypatch):
    monkeypatch.setenv("GSR_KERNELS_CUDA", "yes")
    with pytest.raises(SystemExit, match="GSR_KERNELS_CUDA must be 0 or 1"):
        build.wanted()


def test_only_what_was_asked_for_may_stop_the_installation(build, torch_of, monkeypatch):
    torch_of("2.11.0", "'13.0'")
    assert [extension.optional for extension in build.extensions()] == [True, True]
    monkeypatch.setenv("GSR_KERNELS_CUDA", "1")
    assert [extension.optional for extension in build.extensions()] == [False, False]


def test_nvcc_is_looked_for_where_it_is_said_to_be(build, monkeypatch, tmp_path):
    compiler = tmp_path / "bin" / "nvcc"
    compiler.parent.mkdir()
    compiler.write_text("")
    compiler.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert build.nvcc() == str(compiler)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "elsewhere"))
    assert build.nvcc() is None
