"""What serves where the CUDA extension is not there, or not for this GPU."""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from gsr_kernels import ops
from gsr_kernels.__main__ import main
from gsr_kernels.backends import cuda
from gsr_kernels.linalg import drivers

GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def fresh():
    caches = (cuda.obstacle, cuda.refusal, cuda.small_svd_limit)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of a compute capability, and an extension that was built for some."""

    def make(capability, built="80 90a 100+PTX"):
        monkeypatch.setattr(cuda, "obstacle", lambda: "")
        monkeypatch.setattr(cuda, "architectures", lambda: built)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(cuda, "limit", lambda device: 256)

    return make


@pytest.mark.parametrize(
    "built, capability, runs",
    [
        ("80 90a 100+PTX", (8, 0), True),
        ("80 90a 100+PTX", (8, 9), True),
        ("80 90a 100+PTX", (9, 0), True),
        ("80 90a 100+PTX", (10, 3), True),
        ("80 90a 100+PTX", (12, 0), True),
        ("80 90a 100+PTX", (7, 5), False),
        ("80 90a", (10, 0), False),
        ("86", (8, 0), False),
        ("100f", (10, 3), True),
        ("100a", (10, 3), False),
        ("90a+PTX", (10, 0), False),
        ("", (9, 0), False),
    ],
)
def test_what_runs_where(built, capability, runs):
    assert cuda.runs_on(built, capability) is runs


def test_not_built(monkeypatch, tmp_path):
    monkeypatch.setattr(cuda, "OPERATORS", tmp_path / "operators.so")
    assert "was not built" in cuda.obstacle()
    with pytest.raises(ValueError, match="backend='cuda' is unavailable: the CUDA extension was not built"):
        ops.implementation("small_svd", "cuda", GPU)


def test_broken(monkeypatch, tmp_path):
    library = tmp_path / "operators.so"
    library.write_bytes(b"\x7fELF and no more")
    monkeypatch.setattr(cuda, "OPERATORS", library)
    assert "does not load" in cuda.obstacle()
    assert ops.backend_for("small_svd", GPU) == ("torch", cuda.obstacle())


def test_operators_without_the_facts_of_their_build(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cuda, "OPERATORS", tmp_path)
    monkeypatch.setattr(Path, "is_file", lambda path: True)
    monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
    monkeypatch.setitem(sys.modules, "gsr_kernels.backends.cuda.build", None)
    assert "build it anew" in cuda.obstacle()
    assert main(["info"]) == 0 and "build it anew" in capsys.readouterr().out


def test_built_for_another_gpu_is_said_once(gpu):
    gpu((7, 5))
    with pytest.warns(UserWarning, match=r"built for sm_80, sm_90a, sm_100\+PTX, not for .*torch.linalg decomposes"):
        assert cuda.small_svd_limit(GPU) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cuda.small_svd_limit(GPU) == 0
    assert ops.backend_for("small_svd", GPU)[0] == "torch" and ops.backend_for("rescale", GPU)[0] == "triton"


@pytest.mark.parametrize("asked", ["limit", "capability"])
def test_what_cuda_does_not_answer_is_the_reason(gpu, monkeypatch, asked):
    def broken(device):
        raise RuntimeError("small_svd_limit: no CUDA-capable device is detected\nException raised from")

    gpu((9, 0))
    monkeypatch.setattr(*(cuda, "limit") if asked == "limit" else (torch.cuda, "get_device_capability"), broken)
    reason = "CUDA answers for cuda:0: small_svd_limit: no CUDA-capable device is detected"
    assert ops.backend_for("small_svd", GPU) == ("torch", reason)


def test_chosen_on_a_gpu_that_it_was_built_for(gpu):
    gpu((9, 0))
    assert ops.backend_for("small_svd", GPU) == ("cuda", "up to k = 256, torch beyond")
    assert ops.implementation("small_svd", "auto", GPU) is cuda.small_svd
    with pytest.raises(ValueError, match="backend='cuda' has no rescale"):
        ops.implementation("rescale", "cuda", GPU)
    with pytest.raises(ValueError, match="backend='triton' has no small_svd"):
        ops.implementation("small_svd", "triton", GPU)


def test_importing_the_package_loads_nothing():
    script = (
        "import gsr_kernels, sys; from gsr_kernels.backends import cuda; import torch;"
        "assert not torch.cuda.is_initialized() and not cuda.obstacle.cache_info().currsize;"
        "assert not [name for name in sys.modules if name.startswith('gsr_kernels.backends.cuda.build')]"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_jacobi_is_a_driver_where_the_extension_serves(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(drivers, "machine", lambda device: "some GPU")
    monkeypatch.setattr(drivers, "small_svd_limit", lambda device: 100)
    drivers.decisions._known.clear()
    timed = []

    def clock(driver, size):
        timed.append((driver, size))
        return float(driver != "jacobi")

    assert drivers.chain(GPU, 70, None, clock) == ("jacobi", "polar", "gesvdj", "gesvd", "float64")
    # no larger than the extension takes
    assert timed == [("jacobi", 100), ("polar", 100), ("gesvdj", 100)]
    assert "jacobi" not in drivers.chain(GPU, 101, None, lambda driver, size: 0.0)
    # the kernel knows no other dtype
    assert "jacobi" not in drivers.chain(GPU, 70, None, lambda driver, size: 0.0, torch.float64)
    with pytest.raises(ValueError, match="driver must be None or one of polar"):
        drivers.chain(GPU, 70, "jacobi", clock, torch.float64)
    # without the extension the answer is another's
    monkeypatch.setattr(drivers, "small_svd_limit", lambda device: 0)
    assert drivers.chain(GPU, 70, None, lambda driver, size: 0.0)[0] == "polar"
    drivers.decisions._known.clear()


@pytest.mark.parametrize("shape", [(3, 40, 12), (12, 40), (2, 16, 16)])
def test_jacobi_reduces_to_the_core(monkeypatch, shape):
    plain, asked = ops.implementation("small_svd", "torch"), []
    # the function svd hides the module of its name
    module = sys.modules["gsr_kernels.linalg.svd"]
    monkeypatch.setattr(module, "small_svd", lambda A: asked.append(A.shape) or plain(A))
    W = torch.randn(shape)
    U, S, Vh = module._by_core(W, "jacobi")
    r = min(shape[-2:])
    assert asked == [(*shape[:-2], r, r)]
    assert torch.allclose((U * S.unsqueeze(-2)) @ Vh, W, atol=1e-5)
    assert torch.allclose(S, torch.linalg.svdvals(W), atol=1e-5)
