"""``python -m bench.gpu stand-in ARGUMENTS``: run Python with these arguments as if this machine had a GPU.

What is made for CUDA is made on the CPU, Triton's kernels run in its interpreter, a CUDA graph replays nothing, and the
work has the sizes of ``SMALL``. So a part of a session meets every name, path and argument of its own without a GPU,
and its results are compared with the truth as there. Its times mean nothing.
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

NAME = "a stand-in for a GPU"
CPU = torch.device("cpu")
LLAMA = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
         "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 32}  # fmt: skip


class Marker:
    """Stands for a stream, an event or a graph: nothing is asynchronous, and no time passes."""

    device, cuda_stream = CPU, 0

    def __init__(self, *given: Any, **named: Any) -> None:
        self.given = given

    def __getattr__(self, name: str) -> Callable[..., float]:
        return lambda *given: 1.0


class Generator(torch.Generator):
    """One for the CPU, whatever it is asked for."""

    def __new__(cls, device: object = CPU) -> Generator:
        return super().__new__(cls, CPU)


# what the functions of torch.cuda return
ANSWERS = {
    "is_available": True, "device_count": 1, "current_device": 0, "get_device_name": NAME,
    "get_device_capability": (9, 0), "is_current_stream_capturing": False, "mem_get_info": (2**30, 2**30),
    "get_device_properties": SimpleNamespace(name=NAME, major=9, minor=0, multi_processor_count=2, total_memory=2**30),
    "memory_allocated": 0, "max_memory_allocated": 0, "memory_reserved": 0,
    "memory_stats": {"allocation.all.allocated": 0}, "reset_peak_memory_stats": None, "empty_cache": None,
    "synchronize": None, "set_sync_debug_mode": None, "set_stream": None, "manual_seed": None,
    "current_stream": Marker(),
}  # fmt: skip
# of each module the names that take another value before a part runs
SMALL: dict[str, dict[str, Any]] = {
    "bench.timing": {"FLUSHED": 1, "MOST": 1, "WARM": 0, "PRODUCT": 32, "COPY": 32},
    "bench.run": {"collect": lambda: None},
    "bench.models": {
        "CONFIGURATIONS": {"falcon3-1b": LLAMA},
        "llama_shapes": lambda config: {(16, 8): 1},
    },
    "bench.cases.training_step": {"TOKENS": ((16,), ()), "PASS": 16, "SEQUENCE": 8},
    "bench.cases.launch": {"TIMES": 1},
    "bench.cases.products": {"FALCON3_1B": {(16, 16): 1}, "LLAMA3_8B": {}},
    "bench.cases.small_svd_gpu": {"COUNT": 2, "SIDES": (4,)},
    "gsr_kernels.cli.tune": {"_sides": lambda text: (16, 8)},
    "gsr_kernels.backends.choice": {"WARM": 0, "RUNS": 1},
    "gsr_kernels.backends.triton.trial": {"SHORT": 16, "LONG": 24, "TRUNCATED": 8},
    "bench.gpu.warm": {"ONLY": "^(prepare|finish)$", "PROCESSES": 1},
    "bench.gpu.sanitize": {"WEIGHTS": [((8, 24), None, None)], "PRECISIONS": ("fp16",), "GRADIENTS": (torch.float32,)},
}


class OnTheCPU(TorchFunctionMode):
    """Has every function of torch that is asked for CUDA take the CPU."""

    def __torch_function__(
        self, function: Callable, types: Any, given: Sequence = (), named: dict | None = None
    ) -> Any:
        named = named or {}
        if function in (torch.Tensor.cuda, torch.Tensor.pin_memory):
            return given[0]
        if function is torch.device:
            return function(*given, **named)
        # neither pinned memory nor a choice of LAPACK's drivers is a CPU's
        named = {name: _moved(value) for name, value in named.items() if name not in ("pin_memory", "driver")}
        return function(*map(_moved, given), **named)


def _moved(value: Any) -> Any:
    if isinstance(value, torch.device | str) and str(value).split(":")[0] == "cuda":
        return CPU
    return value


def small_svd(A: Tensor) -> tuple[Tensor, ...]:
    """Return what the CUDA extension's operator would."""
    return *torch.linalg.svd(A), A.new_ones(A.shape[:-2], dtype=torch.int32)


def _answering(value: object) -> Callable[..., object]:
    """Return a function of its own: torch's compiler knows each of torch.cuda by its identity."""
    return lambda *given, **named: value


def answer() -> None:
    """Have torch, and who decides what runs on a GPU, believe in one."""
    for name, value in ANSWERS.items():
        _replace(torch.cuda, name, _answering(value))
    for name in ("Stream", "Event", "CUDAGraph"):
        _replace(torch.cuda, name, type(name, (Marker,), {}))
    _replace(torch, "Generator", Generator)
    for name in ("graph", "stream", "device"):
        _replace(torch.cuda, name, contextmanager(lambda *given, **named: (yield)))
    from gsr_kernels.backends import cuda, dispatch

    # before anybody takes it by its name
    _replace(dispatch, "has_kernels", lambda device: True)
    _replace(dispatch, "_check_asked", lambda backend, device: None)
    _replace(cuda, "refusal", lambda device: "")
    _replace(cuda, "limit", lambda device: cuda.SMALL)
    _replace(cuda, "small_svd", small_svd)
    OnTheCPU().__enter__()


def install() -> None:
    """Make this process believe in the GPU, with the sizes of ``SMALL``; before anything imports Triton."""
    os.environ["TRITON_INTERPRET"] = "1"
    answer()
    from bench import runner

    for module, values in SMALL.items():
        for name, value in values.items():
            _replace(import_module(module), name, value)
    settings = runner._settings
    # of two flags of two values the first of both, and the second of both
    _replace(runner, "_settings", lambda *given: [*settings(*given)][::3])
    quicken_interpreter()


def quicken_interpreter() -> None:
    """Have Triton's interpreter do less beside the kernel: about a third of the time remains.

    It patches triton.language once a kernel, not anew for every function that it calls, looks up numpy's dtype of an
    element once, and looks for no overflow in each sum and product of integers.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    patch = interpreter._patch_lang

    def patched(function: Callable) -> object:
        seen = [module for module in (tl, tl.core) if any(value is module for value in function.__globals__.values())]
        needed = not seen or any(tl.core.is_builtin(module.load) for module in seen)
        return patch(function) if needed else interpreter._LangPatchScope()

    known = cache(interpreter._get_np_dtype)

    def np_dtype(of: Any) -> object:
        # of an address it is the same for all, and types of addresses have no hash
        return np.dtype(np.uint64) if isinstance(of.scalar, tl.pointer_type) else known(of.scalar)

    _replace(interpreter, "_patch_lang", patched)
    _replace(interpreter, "_get_np_dtype", np_dtype)
    _replace(interpreter.interpreter_builder, "options", interpreter.InterpreterOptions(sanitize_overflow=False))


def _replace(module: Any, name: str, value: object) -> None:
    # a name that is gone would change nothing
    getattr(module, name)
    setattr(module, name, value)


def pytest_load_initial_conftests() -> None:
    """Install it in a process of pytest that has ``-p bench.gpu.stand_in``, before it looks for a GPU."""
    if not installed():
        install()


def installed() -> bool:
    """Return whether this process has no other GPU than the stand-in."""
    return torch.cuda.is_available() and torch.cuda.get_device_name() == NAME


def main(argv: Sequence[str]) -> int:
    """Run ``-m MODULE ARGUMENTS``."""
    flag, module, *arguments = argv
    if flag != "-m":
        raise ValueError(f"the stand-in runs modules, as in -m bench --case transform; got {flag}")
    install()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0
