"""The kernels of PS-LoRA's loss, in the interpreter: what the torch backend is held to, on the same factors."""

import pytest
import torch

from gsr_kernels.adapters.stability import sign_shares, stability_loss
from python_tests.adapters import reference
from python_tests.adapters.factors import SHAPES, check_float32, check_half, draw
from python_tests.oracle import double

EVERY_SHAPE = [*SHAPES, ((), 1, 1, 1, 1)]


@pytest.mark.parametrize("terms", ["both", "sign"])
@pytest.mark.parametrize("shape", EVERY_SHAPE, ids=str)
def test_loss_and_gradients(shape, terms):
    check_float32(shape, terms, "triton")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_factors(dtype):
    check_half(dtype, "triton")


@pytest.mark.parametrize("shape", EVERY_SHAPE, ids=str)
def test_shares_of_signs(shape):
    factors = draw(shape, torch.float32)
    factors[0][..., -1, :] = 0
    for found, truth in zip(sign_shares(*factors, backend="triton"), reference.sign_shares(*double(*factors))):
        assert found.dtype == torch.float64 and torch.equal(found, truth)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_what_is_not_finite_shows(wrong):
    factors = draw(((2,), 9, 8, 2, 3), torch.float32)
    factors[0][0, 3, 1] = wrong
    loss = stability_loss(*factors, 1.0, backend="triton")
    assert not loss[0].isfinite() and loss[1].isfinite()


def test_what_the_kernels_do_not_take():
    with pytest.raises(TypeError, match="use backend='torch'"):
        stability_loss(*draw(SHAPES[0]), 1.0, backend="triton")
    with pytest.raises(ValueError, match="ranks up to 128, got 200"):
        stability_loss(*draw(((), 5, 6, 200, 1), torch.float32), 1.0, backend="triton")
