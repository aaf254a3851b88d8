"""The extension as setup.py builds it, for one architecture, loaded without a GPU."""

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench.gpu import nvcc

ROOT = Path(__file__).parents[2]
OBSTACLE = nvcc.setup()["obstacle"]()
LACKING = nvcc.setup()["lacking"](ROOT / "csrc" / "second_product.cu", ["90a"])
# run in the folder of the build, in a process of its own: what was loaded stays
LOADED = """
import pytest
import torch

from gsr_kernels.__main__ import main
from gsr_kernels.backends import cuda

assert cuda.obstacle() == "" and cuda.architectures() == "90a"
assert main(["info"]) == 0
operator = torch.ops.gsr_kernels_cuda.small_svd.default
assert str(operator._schema).endswith(
    "small_svd(Tensor A, Tensor(a!) U, Tensor(b!) S, Tensor(c!) Vh, Tensor(d!) sweeps, int most) -> ()"
)
assert torch._C._dispatch_has_kernel_for_dispatch_key("gsr_kernels_cuda::small_svd", "CUDA")
assert not torch._C._dispatch_has_kernel_for_dispatch_key("gsr_kernels_cuda::small_svd", "CPU")

# what the operator checks, device last, as if these were tensors of a GPU
A = torch.zeros(2, 3, 3)
right = {"A": A, "U": A.clone(), "S": torch.zeros(2, 3), "Vh": A.clone(), "sweeps": torch.zeros(2, dtype=torch.int32)}
on_gpu = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)


def refused(message, most=40, **wrong):
    with pytest.raises(RuntimeError, match=message):
        operator.redispatch(on_gpu, *{**right, **wrong}.values(), most)


refused("A must be on a CUDA device")
refused("most must be from 0", most=-1)
refused("most must be from 0", most=2**31)
refused("A must be .b, k, k.", A=A[0])
refused("A must be contiguous", A=torch.zeros(2, 3, 4))
refused("A must be contiguous", A=torch.zeros(2, 4, 3))
for name, tensor in right.items():
    refused(f"{name} must be contiguous", **{name: tensor.double()})
    refused(f"{name} must be contiguous", **{name: torch.stack([tensor, tensor], -1)[..., 0]})
    if name != "A":
        refused(f"{name} must be contiguous", **{name: tensor[:1]})
        refused(f"{name} must be contiguous", **{name: tensor[..., None]})
"""

# the same of the operator that is built where CUTLASS is: what it is for is looked at first
BY_CUTLASS = """
import pytest
import torch

from gsr_kernels.backends import cuda

assert cuda.obstacle() == ""
operator = torch.ops.gsr_kernels_cuda.second_product_adamw.default
half, wide = torch.zeros(2, 8, 16).half(), torch.zeros(2, 8, 8)
given = half, half.mT.contiguous(), False, wide, True, wide[:, 0, 0], wide[:, 0], wide[:, 0, 0] > 0, wide, wide, wide
on_gpu = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
with pytest.raises(RuntimeError, match="left and right must be .count, rows, columns. on a CUDA device"):
    operator.redispatch(on_gpu, *given)
"""


@pytest.mark.skipif(bool(OBSTACLE), reason=OBSTACLE)
def test_a_build_in_a_folder_with_a_space(tmp_path):
    copy = tmp_path / "a $ folder"
    for name in ("gsr_kernels", "bench", "csrc"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    environment = {**os.environ, "GSR_KERNELS_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "9.0a", "PYTHONPATH": str(copy)}

    def python(*command):
        done = subprocess.run([sys.executable, *command], cwd=copy, env=environment, capture_output=True, text=True,
                              check=False)  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    said = python("setup.py", "build_ext", "--inplace")
    assert "warning" not in said
    # a row of one block and of a cluster, and the other kernels
    kernels = {row["kernel"] for row in nvcc.rows(said, "90a")}
    assert {"decompose<4, OneBlock>", "decompose<8, Cluster>", "complete"} <= kernels
    assert ("second_product_adamw" in kernels) == (not LACKING)
    assert LACKING in said and "Potential Performance Loss" not in said
    assert nvcc.failures("csrc", said, "90a") == []
    libraries = sorted((copy / "gsr_kernels" / "backends" / "cuda").glob("*.so"))
    assert [library.name.split(".")[0] for library in libraries] == ["build", "operators"]
    foreign = runpy.run_path(str(ROOT / "csrc" / "tools" / "symbols.py"))["foreign"]
    assert [foreign(library) for library in libraries] == [[], []]
    assert "CUDA C++: built for sm_90a by nvcc " in python("-c", LOADED)
    if not LACKING:
        python("-c", BY_CUTLASS)
