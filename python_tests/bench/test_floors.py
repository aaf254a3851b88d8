"""The formulas, against the sums that were made by hand for the models."""

import pytest

from bench.models import model
from bench.timing import H200
from bench.transforms import literal_work
from gsr_kernels.cli.floors import STATES, Rates, Work, adamw, transform

H800 = Rates(H200.products, 3.35 * 4.3 / 4.8)


def total(name, of):
    return [work for d1, d2 in model(name).matrices for work in of(d1, d2, min(d1, d2))]


def fused(name, mode, gradient, states, rank=None, rates=H200):
    return rates.floor(
        total(name, lambda d1, d2, k: transform(d1, d2, min(k, rank or k), mode, 2, gradient, end=STATES[states]))
    )


@pytest.mark.parametrize(
    ("name", "matrices", "parameters", "tflop"), [("falcon3-1b", 126, 1.132, 8.97), ("llama3-8b", 224, 6.979, 111.1)]
)
def test_the_models(name, matrices, parameters, tflop):
    shapes = model(name).matrices
    assert len(shapes) == matrices
    assert sum(d1 * d2 for d1, d2 in shapes) / 1e9 == pytest.approx(parameters, abs=1e-3)
    ours = sum(work.flop for work in total(name, lambda d1, d2, k: transform(d1, d2, k, "drop", 2, 4)))
    assert ours / 1e12 == pytest.approx(tflop, abs=0.01 * tflop)


def test_the_literal_form_in_its_best_order():
    work = total("falcon3-1b", lambda d1, d2, k: literal_work(d1, d2, k, "drop", 4, "fp32"))
    assert sum(one.flop for one in work) / 1e12 == pytest.approx(12.2, abs=0.05)


@pytest.mark.parametrize(
    ("floor", "expected"),
    [
        (lambda: fused("falcon3-1b", "drop", 4, "fp32"), 13.0),
        (lambda: fused("falcon3-1b", "keep", 4, "fp32"), 13.8),
        (lambda: fused("falcon3-1b", "drop", 4, "fp32", rates=H800), 16.2),
        (lambda: fused("falcon3-1b", "keep", 4, "fp32", rates=H800), 17.3),
        (lambda: fused("falcon3-1b", "drop", 2, "16-bit"), 11.4),
        (lambda: fused("falcon3-1b", "drop", 2, "fp32 master, 16-bit copy"), 13.4),
        (lambda: fused("falcon3-1b", "keep", 2, "16-bit", rank=256), 4.5),
        (lambda: fused("falcon3-1b", "keep", 2, "fp32 master, 16-bit copy", rank=256), 8.2),
        (lambda: fused("llama3-8b", "drop", 2, "16-bit"), 140.8),
        (lambda: fused("llama3-8b", "drop", 2, "fp32 master, 16-bit copy"), 141.7),
        (lambda: H200.floor(total("falcon3-1b", lambda d1, d2, _: adamw(d1 * d2, 4, "fp32"))), 7.4),
        (lambda: H200.floor(total("falcon3-1b", lambda d1, d2, _: adamw(d1 * d2, 2, "16-bit"))), 3.7),
        (lambda: H200.floor(total("falcon3-1b", lambda d1, d2, k: literal_work(d1, d2, k, "drop", 4, "fp32"))), 184.6),
    ],
)
def test_the_floors(floor, expected):
    assert floor() == pytest.approx(expected, abs=0.06)


def test_a_floor_is_the_longer_of_the_two_kernel_by_kernel():
    rates = Rates({"16-bit": 1.0, "fp32": 0.5}, bandwidth=0.1)
    products, memory = Work(2 * 10**9, 10**8), Work(10**9, 10**9, "fp32")
    assert rates.floor([products]) == pytest.approx(2)
    assert rates.floor([memory]) == pytest.approx(10)
    assert rates.floor([products, memory]) == pytest.approx(12)
