"""The table of README.md of what is tested on a CPU, compiled for GPUs and measured on one, from what is there."""

from __future__ import annotations

import re
from typing import NamedTuple

from bench.docs.pages import ROOT, Rows, table
from bench.gpu import nvcc
from bench.gpu.kernels import cases

TESTS = "python_tests"


class Feature(NamedTuple):
    """Names its page, its tests, what its kernels are called in ``bench.gpu.kernels``, its cases, what is tested."""

    name: str
    tests: tuple[str, ...]
    kernels: str = ""
    cases: tuple[str, ...] = ()
    tested: str = "yes"


FEATURES = (
    Feature("GSR by [`attach`](docs/index.md), before any torch optimizer", ("optim/test_attach.py", "test_ops.py"),
            "_product|rescale_all|fold", ("transform", "tests")),
    Feature("[`GSRAdamW`](docs/gsr_adamw.md): GSR and AdamW in one step", ("optim/test_gsr_adamw.py",),
            "second_product .*AdamW", ("optimizer_step",)),
    Feature("[PSP, OSF, SR, EWC, LwFOwn, GSR-full, data-aware GSR](docs/methods.md)", ("methods",)),
    Feature("[Adapters](docs/adapters/compared.md): PS-LoRA, O-LoRA, EBLoRA, GSR; [merging](docs/adapters/merging.md)",
            ("adapters",), "stability|merge", ("adapters_gpu",)),
    Feature("[Several GPUs](docs/sharded.md): DDP, FSDP2, tensor parallel, DeepSpeed, FSDP1, Megatron-Core",
            ("distributed", "integrations/test_deepspeed.py", "integrations/test_megatron.py")),
    Feature("[Hugging Face Trainer, TRL, Accelerate, Lightning](docs/trainers/transformers.md)",
            ("integrations", "examples")),
    Feature("[Decompositions](docs/performance.md#decompositions), exact and randomized", ("linalg",), "sketch",
            ("svd_gpu",)),
    Feature("[CUDA C++](docs/csrc.md): small decompositions", ("csrc/test_small_svd.py",), "small_svd.cu",
            ("small_svd_gpu",)),
    Feature("[CUDA C++](docs/csrc.md#the-second-product-by-cutlass): GSRAdamW's second product by CUTLASS",
            ("backends/triton/test_cutlass.py",), "second_product.cu", ("second_product_gpu",), "all but its kernel"),
    Feature("[Your own tasks](docs/trainers/own_tasks.md) by one command", ("continual",)),
)  # fmt: skip


def status(rows: Rows) -> str:
    """Return the table; FileNotFoundError for tests that are not there, ValueError for kernels that are none."""
    compiled = [(case.name, case.architecture) for case in cases(True)]
    # the tests of csrc compile for Hopper alone
    compiled += [(source.name, 90) for source in nvcc.sources()]
    return table(
        ["", "CPU tested", "compiled for GPUs", "measured on a GPU"],
        [[one.name, _tests(one), _architectures(one, compiled), _devices(one, rows)] for one in FEATURES],
    )


def _tests(feature: Feature) -> str:
    for name in feature.tests:
        path = ROOT / TESTS / name
        files = path.rglob("test_*.py") if path.is_dir() else [path]
        if not any("\ndef test_" in file.read_text(encoding="utf-8") for file in files):
            raise FileNotFoundError(f"{path} holds no test of {feature.name}")
    return feature.tested


def _architectures(feature: Feature, compiled: list[tuple[str, int]]) -> str:
    if not feature.kernels:
        return "needs no kernel"
    found = sorted({sm for name, sm in compiled if re.search(feature.kernels, name)})
    if not found:
        raise ValueError(f"no kernel is called like {feature.kernels!r}, of {feature.name}")
    return ", ".join(f"sm_{sm}" for sm in found)


def _devices(feature: Feature, rows: Rows) -> str:
    found = [row["device"] for row in rows if row["driver"] and row.get("case", "tests") in feature.cases]
    return ", ".join(dict.fromkeys(found)) or "not yet"
