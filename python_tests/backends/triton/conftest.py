import os

import pytest

# read when the kernels are defined: these tests run them in Triton's interpreter, on a CPU
os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    """The variable is set while these tests run, whatever others do to it."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    from triton.runtime import interpreter

    # with all of its checks
    monkeypatch.setattr(interpreter.interpreter_builder, "options", interpreter.InterpreterOptions())
