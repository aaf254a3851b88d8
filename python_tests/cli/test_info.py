import sys
from types import SimpleNamespace

import torch

from gsr_kernels.__main__ import main
from gsr_kernels.backends import cuda
from gsr_kernels.backends.dispatch import OPERATORS

Facts = SimpleNamespace(architectures="80 90a", nvcc="13.0", torch="2.13")


def test_on_this_machine(capsys):
    assert main(["info"]) == 0
    said = capsys.readouterr().out
    assert torch.__version__ in said and "CUDA C++: " in said
    assert all(f" {name} " in said for name in OPERATORS)


def test_a_gpu_that_does_not_answer(capsys, monkeypatch):
    def broken(device):
        raise RuntimeError("CUDA driver initialization failed")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", broken)
    monkeypatch.setattr(cuda, "obstacle", lambda: "")
    monkeypatch.setitem(sys.modules, "gsr_kernels.backends.cuda.build", Facts)
    cuda.refusal.cache_clear()
    assert main(["info"]) == 0
    said = capsys.readouterr().out
    assert "cuda:0: does not answer: CUDA driver initialization failed" in said
    assert "CUDA C++: built for sm_80, sm_90a by nvcc 13.0 beside torch 2.13" in said
    assert "CUDA answers for cuda:0: CUDA driver initialization failed" in said
    cuda.refusal.cache_clear()


def test_beside_a_gpu_without_the_extension(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "some GPU")
    monkeypatch.setattr(cuda, "obstacle", lambda: "the CUDA extension was not built")
    cuda.refusal.cache_clear()
    assert main(["info"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "cuda:0: some GPU, compute capability 9.0" in said
    assert [line.split() for line in said if " small_svd " in line] == [
        ["cuda:0", "small_svd", "torch", "the", "CUDA", "extension", "was", "not", "built"]
    ]
    assert [line.split()[2] for line in said if " rescale " in line] == ["triton"]
    cuda.refusal.cache_clear()
