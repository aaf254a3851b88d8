"""What a caller allowed his own products does not reach a decomposition, and stays as he set it."""

import os
import subprocess
import sys
import threading

import pytest
import torch

from bench.decompositions import matrix, spectrum
from gsr_kernels.backends.torch.products import full_precision
from gsr_kernels.linalg import randomized_svd, svd
from python_tests.linalg.truth import reconstruction

CPU = torch.device("cpu")
GENERIC, BACKEND, PRODUCTS = ("generic", "all"), ("mkldnn", "all"), ("mkldnn", "matmul")


@pytest.fixture
def settings():
    """Sets what is given for torch, a backend and its products, and resets all of it."""

    def set_all(*values):
        for level, value in zip((GENERIC, BACKEND, PRODUCTS), values):
            torch._C._set_fp32_precision_setter(*level, value)

    yield set_all
    set_all("none", "none", "none")
    torch.set_float32_matmul_precision("highest")


@pytest.fixture
def tf32():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("driver", ["gram", "gesdd", "polar", "float64"])
def test_autocast(driver):
    W = matrix(80, 48, spectrum("log", 48, 1e3))
    with torch.autocast("cpu", torch.bfloat16):
        found = [svd(W, driver), svd(W.bfloat16(), driver)]
        U, S, Vh, _ = randomized_svd(W, 48)
        sketched = randomized_svd(W, 5)
        assert torch.is_autocast_enabled("cpu")
    assert all(factor.dtype == torch.float32 for factor in (*found[0], *found[1], *sketched))
    assert reconstruction(W, *found[0]) <= 5e-6 and reconstruction(W, U, S, Vh) <= 5e-6
    assert torch.equal(sketched.S, randomized_svd(W, 5).S)


def test_threads_that_overlap(tf32):
    first_in, second_in, first_out = (threading.Event() for _ in range(3))
    seen = []

    def first():
        with full_precision(CPU):
            first_in.set()
            second_in.wait(10)
        first_out.set()

    def second():
        first_in.wait(10)
        with full_precision(CPU), full_precision(CPU):
            second_in.set()
            first_out.wait(10)
            seen.append(torch.backends.mkldnn.matmul.fp32_precision)

    threads = [threading.Thread(target=each) for each in (first, second)]
    before = torch.backends.mkldnn.matmul.fp32_precision
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == ["ieee"] and torch.backends.mkldnn.matmul.fp32_precision == before != "ieee"
    assert torch.get_float32_matmul_precision() == "medium"


@pytest.mark.parametrize("products", ["none", "ieee", "tf32", "bf16"])
@pytest.mark.parametrize("backend", ["none", "ieee", "tf32"])
@pytest.mark.parametrize("generic", ["none", "ieee", "tf32", "bf16"])
def test_a_setting_that_was_inherited_goes_on_inheriting(settings, generic, backend, products):
    def in_force():
        return [torch._C._get_fp32_precision_getter(*level) for level in (GENERIC, BACKEND, PRODUCTS)]

    # every change of what is above shows as it would without the decomposition
    changes = [("none", None), ("ieee", None), ("tf32", None), ("none", "ieee"), ("none", "tf32")]

    def seen():
        found = [in_force()]
        for above, own in changes:
            torch._C._set_fp32_precision_setter(*GENERIC, above)
            if own is not None:
                torch._C._set_fp32_precision_setter(*BACKEND, own)
            found.append(in_force())
        return found

    settings(generic, backend, products)
    expected = seen()
    settings(generic, backend, products)
    with full_precision(CPU):
        assert in_force()[-1] == "ieee"
    assert seen() == expected


@pytest.mark.parametrize("name", ["ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"])
def test_the_setting_of_onednn_does_not_reach_products(name):
    code = """
import torch
from gsr_kernels.linalg import randomized_svd
W = torch.randn(256, 20, dtype=torch.float64) @ torch.randn(20, 256, dtype=torch.float64)
truth = torch.linalg.svdvals(W)[:20]
assert ((randomized_svd(W.float(), 20).S - truth) / truth).abs().max() < 1e-5
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, name: "BF16"})
