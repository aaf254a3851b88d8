"""Ω of the sketch: the numbers themselves, the same in torch and in the kernel, for every tile size."""

from contextlib import contextmanager

import pytest
import torch

from gsr_kernels.backends.torch import sketch as plain
from gsr_kernels.backends.triton import sketch as kernel

KINDS = ["gaussian", "sparse"]


def test_philox_gives_its_published_words():
    words = plain.philox(0, torch.tensor([0]), torch.tensor([0]))
    assert [int(word) for word in words] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@pytest.mark.parametrize("kind", KINDS)
def test_omega_is_the_same_to_the_bit_for_every_tiling(kind):
    seed = 2**40 + 7
    expected = plain.omega(66, 72, seed, kind)
    # one number times one, summed with zeros, is that number
    for tile in (None, {"BM": 64, "BN": 16, "BK": 16}, {"BM": 32, "BN": 32, "BK": 32}):
        assert torch.equal(kernel.sketch(torch.eye(66), 72, seed, kind, tile), expected)


@pytest.mark.parametrize("shape", [(70, 53), (2, 3, 20, 37), (1, 2), (5, 64)])
@pytest.mark.parametrize("kind", KINDS)
def test_sketches_agree_with_float64(shape, kind):
    W = torch.randn(shape)
    for width in (1, 33):
        truth = plain.sketch(W.double(), width, 3, kind)
        torch.testing.assert_close(kernel.sketch(W, width, 3, kind).double(), truth, rtol=1e-5, atol=2e-5)
        half = kernel.sketch(W.half(), width, 3, kind)
        torch.testing.assert_close(half.double(), plain.sketch(W.half().double(), width, 3, kind), rtol=1e-5, atol=2e-5)


def test_it_is_launched_on_the_device_of_w(monkeypatch):
    current = []

    @contextmanager
    def on(device):
        current.append(device)
        yield
        current.pop()

    class Launched:
        def __getitem__(self, grid):
            return lambda W, *_, **__: devices.append((*current, W.device))

    devices = []
    monkeypatch.setattr(kernel, "on", on)
    monkeypatch.setattr(kernel, "sketch_kernel", Launched())
    kernel.sketch(torch.ones(4, 4), 2, 0, "gaussian")
    assert devices == [(torch.device("cpu"),) * 2]


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_columns_are_the_first_of_more(kind):
    assert torch.equal(plain.omega(100, 20, 1, kind), plain.omega(100, 70, 1, kind)[:, :20])


def test_gaussian_numbers_are_standard_normal():
    x = plain.omega(1024, 1024, 0, "gaussian").double().flatten()
    n = len(x)
    # the first four moments within four standard errors: 1, √2, √15 and √96 over √n
    for power, (mean, spread) in enumerate(((0, 1), (1, 2), (0, 15), (3, 96)), 1):
        assert abs(x.pow(power).mean() - mean) < 4 * (spread / n) ** 0.5
    # Kolmogorov and Smirnov: a larger distance has probability 1e-3
    distribution = torch.special.ndtr(x.sort().values)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    distance = torch.maximum(distribution - steps[:-1], steps[1:] - distribution).max()
    # numbers of 11 bits fall on steps of up to a 1/2048 of themselves
    assert distance < 1.95 / n**0.5 + 1e-4
    assert x.abs().max() > 4.5


def test_entries_are_not_correlated():
    # neighbours, the four words of one counter, and the pair of one radius
    x = plain.omega(1024, 512, 7, "gaussian").double()
    bound = 4 / (256 * 512) ** 0.5
    quarters = x.unflatten(0, (4, 256))
    pairs = [(quarters[i], quarters[j]) for i in range(4) for j in range(i)]
    pairs += [(x[1:], x[:-1]), (x[:, 1:], x[:, :-1])]
    for one, other in pairs:
        assert abs((one * other).mean()) < bound
        assert abs(((one.square() - 1) * (other.square() - 1)).mean()) < 2 * bound


def test_sparse_entries_are_one_sign_in_sixteen_columns():
    x = plain.omega(400, 96, 2, "sparse")
    assert set(x.unique().tolist()) == {-4.0, 0.0, 4.0}
    blocks = x.unflatten(1, (6, 16)) != 0
    assert (blocks.sum(-1) == 1).all()
    # every place and both signs alike, within four standard errors
    counts = blocks.sum((0, 1)).double()
    assert (counts - 150).abs().max() < 4 * 150**0.5
    assert abs(x.sum() / 4) < 4 * 2400**0.5
