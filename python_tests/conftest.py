import os
import shutil
import tempfile

import pytest
import torch

# whether kernels are interpreted is decided when they are first imported, by whichever test is collected first
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    # where it looks for one, DeepSpeed says on every rank that there is none
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

from bench.gpu.stand_in import quicken_interpreter

quicken_interpreter()


def pytest_configure(config):
    """What a machine decides is kept for the session alone; microbenchmarks run once, unless a flag asks for times."""
    # the workers of pytest-xdist share the folder of the process that started them
    if "PYTEST_XDIST_WORKER" not in os.environ:
        os.environ["XDG_CACHE_HOME"] = folder = tempfile.mkdtemp(prefix="gsr_kernels-cache-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    asked = any(config.getoption(f"benchmark_{name}", False) for name in ("only", "enable"))
    config.option.benchmark_disable = not asked


@pytest.fixture(autouse=True)
def seeded_and_poisoned():
    """Every test draws the same numbers; memory that nothing wrote holds NaN and cannot pass for a result."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def no_rank_is_left():
    """Lightning and Accelerate leave a rank's variables, by which a later test's process would seek others."""
    names = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    before = {name: os.environ[name] for name in names if name in os.environ}
    yield
    for name in names:
        os.environ.pop(name, None)
    os.environ.update(before)


@pytest.fixture
def blank_pictures(monkeypatch):
    """Runs whose numbers are looked at leave empty files: pictures would take half of their time."""
    for name in ("draw_forgetting", "draw_losses", "draw_spectra"):
        monkeypatch.setattr(f"gsr_kernels.continual.plots.{name}", lambda results, path: path.touch())
