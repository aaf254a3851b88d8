import os
from functools import cache

import pytest
import torch

from bench.gpu import candidates, stand_in
from bench.results import TESTS, Table, conditions
from gsr_kernels.backends import cuda
from python_tests.oracle import error

COLUMNS = ["test", "what", "outcome", "count", "error", "torch_error", "seconds",
           "device", "driver", "torch", "triton", "date", "commit"]  # fmt: skip
TABLE = Table(TESTS, COLUMNS, same=["test", "device"])

here = cache(conditions)

# these tests need a GPU and kernels that are not interpreted, or the stand-in; elsewhere there is nothing to collect
if not torch.cuda.is_available() or (os.environ.get("TRITON_INTERPRET") == "1" and not stand_in.installed()):
    collect_ignore_glob = ["test_*.py"]
else:
    # `python -m bench.gpu build build_candidates` builds both
    absent = {"test_small_svd.py": cuda.obstacle(), "test_candidates.py": candidates.obstacle()}
    if torch.cuda.is_available():
        absent["test_second_product.py"] = cuda.without_cutlass(torch.device("cuda", 0))
    collect_ignore = [name for name, reason in absent.items() if reason]


@pytest.fixture(autouse=True)
def on_gpu():
    """Everything a test makes lies on the GPU; float32 products of the comparisons are float32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    with torch.device("cuda"):
        torch.cuda.manual_seed(0)
        yield


@pytest.fixture
def record(record_property):
    """A row of the record: what was looked at, how many entries or repeats, and what was found."""
    return lambda what, **found: record_property("found", {"what": what, **found})


@pytest.fixture
def as_good(record):
    """Asserts a result at most twice as far from the truth as torch's own in the same precision, and records it.

    Below ``floor`` both are right: torch's may be so by luck.
    """

    def check(what, result, truth, same, floor):
        found, own = error(result, truth), error(same, truth)
        record(what, count=result.numel(), error=f"{found:.3e}", torch_error=f"{own:.3e}")
        assert found <= max(2 * own, floor), f"{what}: {found:.2e}, torch {own:.2e}"

    return check


def pytest_runtest_logreport(report):
    """Each test's rows in place of those that it left on this device before; of several workers one process writes."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    if report.when != "call" and not report.failed:
        return
    test, where = report.nodeid.removeprefix("python_tests/gpu/"), here()
    shared = {"test": test, "outcome": report.outcome, "seconds": round(report.duration, 2), **where}
    found = [row for name, row in report.user_properties if name == "found"] or [{}]
    TABLE.add({**row, **shared} for row in found)
