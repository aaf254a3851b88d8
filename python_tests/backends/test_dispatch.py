"""backend_for over operators, devices, dtypes and shapes, and nobody else decides."""

import ast
from pathlib import Path

import pytest
import torch

import gsr_kernels
from gsr_kernels import SpectralBasis, rescale_gradient
from gsr_kernels.backends import choice, cuda, dispatch
from gsr_kernels.backends.dispatch import OPERATORS, STEPS, backend_for
from gsr_kernels.backends.table import function
from gsr_kernels.cli import info

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
fp16, bf16, fp32, fp64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
NOT_CUDA, ON_CUDA, ASKED = "not on a CUDA device", "on a CUDA device", "asked for"
NO_DOUBLE = "Triton's kernels have no float64"
NO_TENSOR_CORE = "float32 products run on no tensor core: cuBLAS is faster"
REMAINDER = "a truncated basis with out_of_span='drop' takes four products"
WHOLE, TRUNCATED = (48, 32, 32), (48, 32, 8)
# device, gradient, basis, shape, out_of_span, backend -> answer
TABLE = [
    *[(op, (CPU,), ("torch", NOT_CUDA)) for op in OPERATORS],
    *[(op, (None,), ("torch", NOT_CUDA)) for op in OPERATORS],
    *[(op, (GPU,), ("triton", ON_CUDA)) for op in OPERATORS if op != "small_svd"],
    *[(op, (GPU, fp64, fp64), ("torch", NO_DOUBLE)) for op in OPERATORS if op != "small_svd"],
    *[(op, (GPU, fp32, None, None, None, "torch"), ("torch", ASKED)) for op in OPERATORS],
    *[(op, (GPU, fp32, fp16, None, None, "triton"), ("triton", ASKED)) for op in OPERATORS],
    *[
        (op, (GPU, *form), answer)
        for op in STEPS
        for form, answer in [
            ((fp32, fp16, WHOLE, "drop"), ("triton", ON_CUDA)),
            ((bf16, bf16, WHOLE, "keep"), ("triton", ON_CUDA)),
            ((fp32, fp16, TRUNCATED, "keep"), ("triton", ON_CUDA)),
            ((fp32, fp16, TRUNCATED, "drop"), ("torch", REMAINDER)),
            ((bf16, fp32, WHOLE, "drop"), ("torch", NO_TENSOR_CORE)),
            ((fp64, fp16, WHOLE, "drop"), ("torch", NO_DOUBLE)),
            # of the forms that the kernels do not support a step is torch's, whatever was asked for
            ((fp32, fp16, TRUNCATED, "drop", "triton"), ("torch", REMAINDER)),
            ((fp32, fp32, WHOLE, "keep", "triton"), ("torch", NO_TENSOR_CORE)),
        ]
    ],
    # a stage says itself what it does not take
    ("project", (GPU, fp64, fp64, WHOLE, None, "triton"), ("triton", ASKED)),
    ("project", (GPU, fp32, fp32, TRUNCATED), ("triton", ON_CUDA)),
    ("sketch", (GPU, fp32), ("triton", ON_CUDA)),
    ("sketch", (GPU, fp16), ("torch", "Triton's sketch is of float32, not torch.float16")),
    ("small_svd", (GPU,), ("cuda", "up to k = 256, torch beyond")),
    ("small_svd", (GPU, fp32, None, (256, 256, 256)), ("cuda", "up to k = 256, torch beyond")),
    ("small_svd", (GPU, fp32, None, (257, 257, 257)), ("torch", "k = 257 is above 256")),
    ("rescale", (GPU, fp32, None, None, None, "cuda"), ("cuda", ASKED)),
]


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that nobody touches: the extension supports it, and kernels are compiled."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(cuda, "refusal", lambda device: "")
    monkeypatch.setattr(cuda, "small_svd_limit", lambda device: 256)
    monkeypatch.setattr(choice, "machine", lambda device: "some GPU")


@pytest.mark.parametrize("op, form, answer", TABLE, ids=str)
def test_who_computes(gpu, op, form, answer):
    assert backend_for(op, *form) == answer


def test_who_cannot_compute(gpu, monkeypatch):
    for op in STEPS:
        with pytest.raises(TypeError, match="both must be fp16, bf16, fp32 or fp64"):
            backend_for(op, GPU, torch.float8_e4m3fn, fp16)
    with pytest.raises(
        ValueError, match="backend must be one of auto, torch, triton, cublas, tma, cutlass, cuda, got 'numpy'"
    ):
        backend_for("step", GPU, backend="numpy")
    with pytest.raises(ValueError, match="or TRITON_INTERPRET=1; got cpu"):
        backend_for("step", CPU, backend="triton")
    with pytest.raises(ValueError, match="backend='cuda' is unavailable: it needs tensors on a CUDA device, got cpu"):
        backend_for("small_svd", CPU, backend="cuda")
    with pytest.raises(ValueError, match="backend='cuda' takes k up to 256 on cuda:0, got 257"):
        backend_for("small_svd", GPU, shape=(257, 257, 257), backend="cuda")
    monkeypatch.setattr(cuda, "refusal", lambda device: "it was not built")
    monkeypatch.setattr(cuda, "small_svd_limit", lambda device: 0)
    assert (
        backend_for("small_svd", GPU, shape=(4, 4, 4)) == backend_for("small_svd", GPU) == ("torch", "it was not built")
    )
    with pytest.raises(ValueError, match="backend='cuda' is unavailable: it was not built"):
        backend_for("small_svd", GPU, backend="cuda")


def test_without_triton_torch_computes(gpu, monkeypatch):
    monkeypatch.setattr(dispatch, "kernels_installed", lambda: False)
    answers = {backend_for(op, GPU) for op in OPERATORS if op != "small_svd"}
    assert answers == {("torch", "Triton is not installed")}


def test_the_interpreter_takes_float32(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backend_for("step", CPU, fp32, fp32, WHOLE, "drop", "triton") == ("triton", ASKED)
    assert backend_for("step", CPU, fp32, fp32, WHOLE, "drop") == ("torch", NOT_CUDA)


def test_every_answer_has_a_function():
    for op in OPERATORS:
        name = "rescale_gradients" if op in STEPS else op
        for backend in ("torch", "cuda") if op == "small_svd" else ("torch", "triton"):
            assert function(name, backend).__name__ == name


def test_info_prints_the_same_answers(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(info, "_described", lambda device: "some GPU")
    said = [line.split(maxsplit=3) for line in info.lines() if line.startswith("cuda:0 ")]
    for op in OPERATORS:
        forms = info.FORMS if op in STEPS else {"": {}}
        found = [(backend, reason) for _, name, backend, reason in said if name == op]
        expected = {name: backend_for(op, GPU, **form) for name, form in forms.items()}
        assert found == [(who, f"{name}: {why}" if name else why) for name, (who, why) in expected.items()]


def test_nothing_of_an_empty_batch_is_launched(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    basis = SpectralBasis(torch.zeros(0, 4, 3).half(), torch.ones(0, 3), torch.zeros(0, 3, 5).half())
    assert rescale_gradient(torch.zeros(0, 4, 5), basis, 0.5, backend="triton").shape == (0, 4, 5)


# the device that memory is on, not who computes: pinned buffers, streams, storage, a CPU's products
ELSEWHERE = {
    # the name of a GPU, and the products of cuBLAS, which a CPU has in float32 alone
    "io/decisions.py",
    "backends/triton/cublas_plan.py",
    "backends/dispatch.py", "backends/triton/addresses.py", "backends/triton/configurations.py",
    "backends/triton/moments.py", "linalg/drivers.py", "linalg/side_by_side.py", "offload.py",
    "distributed/decompose.py",
}  # fmt: skip


def test_nobody_else_decides():
    package = Path(gsr_kernels.__file__).parent
    asking = set()
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            compared = isinstance(node, ast.Compare) and "cuda" in [
                one.value for one in (node.left, *node.comparators) if isinstance(one, ast.Constant)
            ]
            if compared or (isinstance(node, ast.Attribute) and node.attr == "is_cuda"):
                asking.add(str(file.relative_to(package)))
    assert asking <= ELSEWHERE
