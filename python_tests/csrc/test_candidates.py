"""csrc/candidates as far as it runs without a GPU: the rescale thread by thread, and AdamW entry by entry."""

import ctypes

import pytest
import torch

from gsr_kernels import ops, reference
from python_tests.csrc.emulate import compiled
from python_tests.oracle import assert_as_good


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    return compiled("candidates", tmp_path_factory.mktemp("emulation"))


def pointer(tensor):
    return ctypes.c_void_p(tensor.data_ptr())


@pytest.fixture
def rescale(library):
    """g, delta and finite of all matrices at once, from their partial sums ``[parts, k]``, into poisoned memory."""

    def call(partials, S, rho, floor=reference.FLOOR, longest=None, backwards=False):
        library.emulate(backwards)
        sizes = [one.shape[-1] for one in partials]
        places = torch.tensor([0, *sizes]).cumsum(0)
        starts = torch.tensor([0, *(one.numel() for one in partials)]).cumsum(0)
        table = [[starts[i], places[i], *one.shape] for i, one in enumerate(partials)]
        given = [torch.tensor(table), torch.cat([one.flatten() for one in partials]), torch.cat(S), torch.tensor([rho])]
        g, delta = torch.full((2, int(places[-1])), torch.nan)
        finite = torch.full((len(sizes),), 7, dtype=torch.uint8)
        segments, sums, sigma, share = map(pointer, given)
        error = library.rescale(segments, len(sizes), longest or max(sizes), sums, sigma, share, ctypes.c_float(floor),
                                pointer(g), pointer(delta), pointer(finite))  # fmt: skip
        if error:
            raise ValueError(error)
        return list(g.split(sizes)), list(delta.split(sizes)), finite.tolist()

    return call


def draw(k, parts=1):
    S = torch.rand(k).sort(descending=True).values
    return torch.randn(parts, k) / parts**0.5, S + 1e-3


def check(g, delta, partials, S, rho):
    """One matrix against float64 and against torch in float32."""
    total = torch.zeros(len(S))
    for part in partials:
        total += part
    assert torch.equal(g, total)
    assert_as_good(g + delta, reference.rescale(g.double(), S.double(), rho), ops.rescale(g, S, rho, backend="torch"))
    truth = reference.rescale(g.double(), S.double(), rho) - g
    assert_as_good(delta, truth, ops.rescale(g, S, rho, backend="torch") - g)
    assert torch.equal((g + delta).sign(), g.sign())


# one entry, one warp and one more, all threads and one more, several entries a thread in every kernel
SIZES = [(1, 1), (2, 3), (32, 2), (33, 1), (1024, 5), (1025, 2), (777, 16)]


@pytest.mark.parametrize("rho", [0.5, 1.0])
def test_matrices_of_unlike_sizes_at_once(rescale, rho):
    partials, S = zip(*(draw(*size) for size in SIZES))
    g, delta, finite = rescale(partials, S, rho)
    assert finite == [1] * len(SIZES)
    for i in range(len(SIZES)):
        check(g[i], delta[i], partials[i], S[i], rho)


@pytest.mark.parametrize("k", [2049, 4097, 8193, 16384])
def test_long_ones(rescale, k):
    partials, S = draw(k, 3)
    g, delta, _ = rescale([partials], [S], 0.7)
    check(g[0], delta[0], partials, S, 0.7)


@pytest.mark.parametrize("longest", [0, 16385])
def test_what_no_kernel_takes_is_refused(rescale, longest):
    partials, S = draw(4)
    with pytest.raises(ValueError, match="1"):
        rescale([partials], [S], 0.5, longest=longest or -1)


def test_one_that_is_longer_than_was_promised_is_flagged_and_moves_nothing(rescale):
    partials, S = zip(draw(2049), draw(3))
    _, delta, finite = rescale(partials, S, 0.5, longest=2048)
    assert finite == [0, 1] and not delta[0][:2048].any() and delta[1].any()


def test_degenerate_matrices(rescale):
    g = torch.randn(40)
    S = draw(40)[1]
    cases = {
        "one sign": (g.abs(), S),
        "all zero": (torch.zeros(40), S),
        "zeros among them": (g * (g > 0.5), S),
        "negative zero": (torch.where(g > 0.5, g, -0.0), S),
        "equal singular values": (g, torch.ones(40)),
        "no singular value": (g, torch.zeros(40)),
        "most below the floor": (g, S * (torch.arange(40) < 3)),
        "huge": (g * 1e30, S),
        "tiny": (g * 1e-30, S),
    }
    partials = [one.unsqueeze(0) for one, _ in cases.values()]
    found, delta, finite = rescale(partials, [sigma for _, sigma in cases.values()], 0.5)
    assert finite == [1] * len(cases)
    for i, (one, sigma) in enumerate(cases.values()):
        # the reference squares what it is given
        scale = one.abs().max().clamp(min=1e-38).double()
        truth = reference.rescale(one.double() / scale, sigma.double(), 0.5)
        assert_as_good((one + delta[i]) / scale, truth, ops.rescale(one, sigma, 0.5, backend="torch") / scale)
        assert torch.equal(found[i], one)
    assert not delta[1].any() and not delta[5].any() and not delta[6][3:].any()


def test_without_rho_nothing_moves(rescale):
    partials, S = draw(70, 2)
    _, (delta,), _ = rescale([partials * 1e-25], [S], 0.0)
    assert not delta.any()


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_flagged_and_the_others_are_not_touched(rescale, wrong):
    partials, S = zip(*(draw(50, 2) for _ in range(3)))
    clean = rescale(partials, S, 0.5)
    partials[1][1, 49] = wrong
    g, delta, finite = rescale(partials, S, 0.5)
    assert finite == [1, 0, 1] and not delta[1].any()
    # g is what it was found to be
    assert torch.equal(g[1][:49], clean[0][1][:49]) and not g[1][49].isfinite()
    for i in (0, 2):
        assert torch.equal(g[i], clean[0][i]) and torch.equal(delta[i], clean[1][i])


def test_the_order_of_threads_changes_no_bit(rescale):
    partials, S = draw(3000, 3)
    forwards, backwards = (rescale([partials], [S], 0.5, backwards=order) for order in (False, True))
    assert torch.equal(forwards[1][0], backwards[1][0])


def test_adamw_is_torchs(library):
    names = ("go", "unscale", "fresh1", "beta", "fresh2", "rate", "root", "floor", "decay")
    lr, beta1, beta2, eps, decay, step, scale = 1e-2, 0.9, 0.999, 1e-8, 0.1, 7, 4.0
    values = (1, 1 / scale, 1 - beta1, beta2, 1 - beta2, lr / (1 - beta1**step), (1 - beta2**step) ** -0.5, eps,
              1 - lr * decay)  # fmt: skip
    assert len(values) == len(names)
    coefficients = torch.tensor(values, dtype=torch.float32)
    G, m, W = torch.randn(3, 500)
    v = torch.rand(500)
    moved, truth = [], []
    for dtype, into in ((torch.float32, moved), (torch.float64, truth)):
        parameter = W.clone().to(dtype).requires_grad_()
        parameter.grad = G.to(dtype)
        optimizer = torch.optim.AdamW([parameter], lr, (beta1, beta2), eps, decay)
        state = {"step": torch.tensor(step - 1.0), "exp_avg": m.to(dtype), "exp_avg_sq": v.to(dtype)}
        optimizer.state[parameter] = {name: one.clone() for name, one in state.items()}
        optimizer.step()
        into += [optimizer.state[parameter]["exp_avg"], optimizer.state[parameter]["exp_avg_sq"], parameter.detach()]
    found, given = [m.clone(), v.clone(), W.clone()], G * scale
    library.update(pointer(coefficients), 500, pointer(given), *map(pointer, found))
    for one, right, same in zip(found, truth, moved):
        assert_as_good(one, right, same)
