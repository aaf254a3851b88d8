import os

import pytest
import torch

# whether kernels are interpreted is decided when they are first imported, by whichever test is collected first
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

import triton.language as tl
from triton.runtime import interpreter

_patch_lang = interpreter._patch_lang


def patch_once(fn):
    """Leave triton.language as the kernel has patched it: the interpreter would anew for every function it calls."""
    seen = [module for module in (tl, tl.core) if any(value is module for value in fn.__globals__.values())]
    needed = not seen or any(tl.core.is_builtin(module.load) for module in seen)
    return _patch_lang(fn) if needed else interpreter._LangPatchScope()


interpreter._patch_lang = patch_once


@pytest.fixture(autouse=True)
def seeded_and_poisoned():
    """Every test draws the same numbers; memory that nothing wrote holds NaN and cannot pass for a result."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def blank_pictures(monkeypatch):
    """Runs whose numbers are looked at leave empty files: pictures would take half of their time."""
    for name in ("draw_forgetting", "draw_spectra"):
        monkeypatch.setattr(f"gsr_kernels.continual.plots.{name}", lambda results, path: path.touch())
