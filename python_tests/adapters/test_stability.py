"""PS-LoRA's loss and gradients against the dense form in float64, by autograd; and what it holds."""

from typing import get_args

import pytest
import torch

from bench.timing import peak_extra_bytes
from gsr_kernels.adapters.stability import Terms, auto_alpha, sign_shares, stability_loss
from gsr_kernels.adapters.terms import overlap_loss
from python_tests.adapters import reference
from python_tests.adapters.factors import SHAPES, check_float32, check_half, dense, draw, ours
from python_tests.oracle import double, error


@pytest.mark.parametrize("terms", get_args(Terms))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float64(shape, terms):
    factors = draw(shape)
    for alpha in (0.7, 3.0):
        for found, truth in zip(ours(*factors, alpha, terms, "torch"), dense(*factors, alpha, terms)):
            assert found.shape == truth.shape and error(found, truth) < 1e-10


@pytest.mark.parametrize("terms", get_args(Terms))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float32(shape, terms):
    check_float32(shape, terms, "torch")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_factors_are_multiplied_in_float32(dtype):
    check_half(dtype, "torch")


@pytest.mark.parametrize("terms", get_args(Terms))
def test_autograd_agrees(terms):
    factors = draw(((2,), 4, 3, 2, 2))
    for factor in factors[:2]:
        factor.requires_grad_()
    assert torch.autograd.gradcheck(lambda B, A: stability_loss(B, A, *factors[2:], 0.9, terms), factors[:2])


def test_strips_of_a_large_matrix_meet_without_a_seam():
    factors = draw(((2,), 600, 1000, 2, 3))
    for found, truth in zip(ours(*factors, 1.0, "both", "torch"), dense(*factors, 1.0, "both")):
        assert error(found, truth) < 1e-10


def test_one_gradient_alone_and_none():
    B, A, old_B, old_A = draw(SHAPES[1], torch.float32)
    plain = stability_loss(B, A, old_B, old_A, 1.0)
    assert not plain.requires_grad
    B.requires_grad_()
    loss = stability_loss(B, A, old_B, old_A, 1.0)
    loss.sum().backward()
    assert torch.equal(loss, plain) and B.grad.isfinite().all() and A.grad is None


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shares_of_signs(shape):
    factors = draw(shape, torch.float32)
    factors[0][..., -1, :] = 0
    for found, truth in zip(sign_shares(*factors), reference.sign_shares(*double(*factors))):
        assert found.dtype == torch.float64 and torch.equal(found, truth)


def test_alpha_is_by_default_the_size_of_the_earlier_adapters():
    B, A, old_B, old_A = draw(((2,), 30, 20, 2, 6), size=1e-4)
    old_B[1] = 0
    rms = (old_B[0] @ old_A[0]).square().mean().sqrt()
    found = auto_alpha(old_B, old_A)
    assert error(found, torch.stack([1 / rms, torch.ones_like(rms)])) < 1e-10
    # what no earlier task has touched is held small alone
    loss = stability_loss(B, A, old_B, old_A)
    assert error(loss, stability_loss(B, A, old_B, old_A, found)) < 1e-12
    assert error(loss[1], (B[1] @ A[1]).square().sum()) < 1e-10


def test_no_matrix_of_a_weight_s_size_is_stored():
    factors = draw(((2,), 4096, 1024, 4, 8), torch.float32)
    for factor in factors[:2]:
        factor.requires_grad_()

    def held(loss):
        return peak_extra_bytes(lambda: torch.autograd.grad(loss(*factors, 1.0, "both").sum(), factors[:2]))

    matrix = 4 * 4096 * 1024
    assert held(stability_loss) < matrix / 3
    assert held(reference.stability_loss) > 4 * matrix


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_what_is_not_finite_shows(wrong):
    factors = draw(((2,), 9, 8, 2, 3), torch.float32)
    factors[0][0, 3, 1] = wrong
    loss = stability_loss(*factors, 1.0)
    assert not loss[0].isfinite() and loss[1].isfinite()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"alpha": 0.0}, ValueError, r"alpha must be 'auto' or a number in \[1e-12, 1e\+12\], got 0.0"),
        ({"alpha": -1.0}, ValueError, "alpha must be"),
        ({"alpha": 1e20}, ValueError, "alpha must be"),
        ({"alpha": torch.nan}, ValueError, "alpha must be"),
        ({"alpha": "one"}, ValueError, "alpha must be"),
        ({"alpha": torch.ones(3)}, ValueError, "alpha must be one number"),
        ({"terms": "half"}, ValueError, "terms must be one of both, magnitude, sign"),
        ({"backend": "numpy"}, ValueError, "backend"),
        ({"A": torch.randn(2, 4, 6)}, ValueError, r"A must be \(2, 2, 6\) to fit"),
        ({"old_A": torch.randn(2, 3, 7)}, ValueError, r"old_A must be \(2, 3, 6\) to fit"),
        ({"old_A": torch.randn(3, 3, 6)}, ValueError, r"old_A must be \(2, 3, 6\) to fit"),
        ({"B": torch.zeros(2, 5, 2, dtype=torch.int64)}, TypeError, "B must be a real floating-point tensor"),
        ({"A": None}, TypeError, "A must be"),
        ({"A": torch.zeros(2, 2, 6).to(torch.float8_e5m2)}, TypeError, "A is kept as torch.float8_e5m2"),
        ({"old_B": torch.randn(2, 5, 3, device="meta")}, ValueError, "old_B is on meta, B on cpu"),
    ],
)
def test_bad_input_is_named(change, error, message):
    given = dict(zip(("B", "A", "old_B", "old_A"), draw(((2,), 5, 6, 2, 3), torch.float32)))
    with pytest.raises(error, match=message):
        stability_loss(**{**given, **change})


def test_autocast_changes_nothing():
    B, A, old_B, old_A = draw(((1,), 64, 48, 8, 16), torch.float32)
    B.requires_grad_()
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses = [stability_loss(B, A, old_B, old_A, terms=terms) for terms in get_args(Terms)]
            others = [*sign_shares(B, A, old_B, old_A), overlap_loss(A, old_A)]
        results.append([*losses, *others, *torch.autograd.grad(sum(losses).sum(), B)])
    assert all(torch.equal(one, other) for one, other in zip(*results))


def test_columns_that_nearly_cancel():
    b, a = torch.randn(1, 64, 1), torch.randn(1, 1, 48)
    B, A = torch.cat([b, -b + 1e-4 * torch.randn(1, 64, 1)], -1), torch.cat([a, a], 1)
    truth = reference.stability_loss(*double(B, A, B, A), 1.0, "magnitude")
    assert error(stability_loss(B, A, B, A, terms="magnitude"), truth) < 1e-6


def test_an_upstream_that_leaves_fp16():
    factors = [6e-3 * factor for factor in draw(((1,), 64, 48, 4, 8))]
    half = [factor.half() for factor in factors]
    gradients = []
    for B, A, old_B, old_A in (half, double(*half)):
        B, A = B.detach().requires_grad_(), A.detach().requires_grad_()
        gradients.append(torch.autograd.grad(2.0**17 * stability_loss(B, A, old_B, old_A).sum(), (B, A)))
    for found, truth in zip(*gradients):
        assert found.dtype == torch.float16 and error(found, truth) < 1e-3


@pytest.mark.parametrize("size", [1e-21, 1e-18, 1e15])
def test_earlier_adapters_next_to_nothing_or_huge(size):
    factors = draw(((1,), 6, 6, 2, 2), torch.float32, size=1e-3)
    assert stability_loss(*factors[:2], *(size * factor for factor in factors[2:])).isfinite()
