"""The parts of ``make gpu``, in order of their worth: ten minutes in all on one H200, compiling included."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

SANITIZER = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"


@dataclass(frozen=True)
class Part:
    """A command of Python.

    Args:
        seconds: planned for it.
        worth: what it settles.
        command: the arguments of Python.
        environment: what its environment has beside ours.
        sanitizer: the tool of compute-sanitizer under which it runs.
    """

    seconds: int
    worth: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    sanitizer: str = ""


def case(*arguments: str) -> list[str]:
    """Return the command of cases of bench/cases."""
    return ["-m", "bench", "--case", *arguments]


def tests(path: str = "python_tests/gpu") -> list[str]:
    """Return the command of tests, without the options of the project: they ask for plugins that need not be there."""
    options = "-o addopts=--import-mode=importlib -p no:cacheprovider -p no:hypothesispytest -q -n auto"
    return ["-m", "pytest", *options.split(), path]


WORKERS = {"PYTEST_XDIST_AUTO_NUM_WORKERS": "6"}
# memory as it was asked for: inside a block of torch's own cache an access out of bounds goes unseen
ALONE = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
SANITIZE = ["-m", "bench.gpu", "sanitize"]
FALCON3_1B = [word for sides in ("2048x2048", "1024x2048", "8192x2048", "2048x8192") for word in ("--shape", sides)]
BOTH = ["--gradient", "fp32", "bf16", "--rank", "full", "256"]

PARTS = {
    "warm": Part(25, "nothing after it waits for a compiler", ["-m", "bench.gpu", "warm"]),
    "products": Part(35, "tiles of 128 x 128 against 128 x 256", case("products", "--seconds", "0.05")),
    "tests": Part(90, "the kernels are right", tests(), WORKERS),
    "tune": Part(30, "the fastest way to step", ["-m", "gsr_kernels", "tune", *FALCON3_1B, "--seconds", "10"]),
    "steps": Part(110, "time and memory of a step", case("optimizer_step", "transform", "memory", "launch", *BOTH)),
    "bf16": Part(30, "bf16 bases", case("transform", "--precision", "bf16", "--gradient", "bf16")),
    "training": Part(55, "the share of a training step", case("training_step", "--rank", "full", "256")),
    "small_svd": Part(40, "the CUDA extension, where it is built", case("small_svd_gpu")),
    "svd": Part(60, "the bases of a whole model", case("model_svd_gpu")),
    "memcheck": Part(60, "no access out of bounds", SANITIZE, ALONE, "memcheck"),
}  # fmt: skip

# by name alone: decompositions in detail, adapters, building and judging the CUDA extension and the candidates
OTHERS = {
    "svd_gpu": Part(190, "each driver against n", case("svd_gpu")),
    "svd_accuracy": Part(80, "errors of decompositions", case("svd_accuracy")),
    "adapters_gpu": Part(60, "the kernels of adapters", case("adapters_gpu")),
    "build": Part(150, "the CUDA extension", ["setup.py", "build_ext", "--inplace"], {"GSR_KERNELS_CUDA": "1"}),
    "small_svd_tests": Part(120, "the extension is right", tests("python_tests/gpu/test_small_svd.py"), WORKERS),
    "second_product_tests": Part(60, "CUTLASS is right", tests("python_tests/gpu/test_second_product.py"), WORKERS),
    "csrc_memcheck": Part(60, "accesses of csrc", [*SANITIZE, "--csrc"], ALONE, "memcheck"),
    "csrc_racecheck": Part(60, "races of csrc", [*SANITIZE, "--csrc"], ALONE, "racecheck"),
    "csrc_synccheck": Part(60, "barriers of csrc", [*SANITIZE, "--csrc"], ALONE, "synccheck"),
    "build_candidates": Part(60, "csrc/candidates", ["-m", "bench.gpu", "candidates"]),
    "parity": Part(90, "the candidates are right", tests("python_tests/gpu/test_candidates.py"), WORKERS),
    "comparison": Part(170, "who stays", case("rescale_gpu", "second_product_gpu", "products")),
}  # fmt: skip
ALL = PARTS | OTHERS
