import pytest
import torch
from torch import nn

from gsr_kernels import attach
from gsr_kernels.methods import GSR, SR
from python_tests.methods import reference
from python_tests.oracle import assert_as_good, error

SHAPES = [(24, 24), (30, 12), (9, 31), (1, 12), (12, 1), (3, 12, 8)]


def gapped(shape, dtype=torch.float64):
    """A weight whose largest singular value stands alone, so that power iteration converges in the start."""
    W = torch.randn(shape, dtype=torch.float64)
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    S[..., 0] = 4 * S[..., :2].amax(-1)
    return ((U * S.unsqueeze(-2)) @ Vh).to(dtype)


def added(method, W, scale=None):
    basis = method.decompose("w", W, None, None)
    G = torch.zeros_like(W)
    (flags,) = method.transform([(G, W, basis, method.prepare("w", W, basis))], scale)
    assert flags.all()
    return G


def by_autograd(W, lam, k, target):
    W = W.clone().requires_grad_()
    (lam * reference.sr_penalty(W, k, target)).backward()
    return W.grad


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_term_is_the_gradient_of_the_penalty(shape, k):
    W = gapped(shape)
    assert error(added(SR(0.3, k), W), by_autograd(W, 0.3, k, 1.0)) < 1e-10
    W = W.float()
    assert_as_good(added(SR(0.3, k), W), by_autograd(W.double(), 0.3, k, 1.0), by_autograd(W, 0.3, k, 1.0), floor=1e-6)


def test_target_initial_pulls_back_to_the_start():
    method, W = SR(0.3, target="initial"), gapped((16, 12))
    basis = method.decompose("w", W, None, None)
    state = method.prepare("w", W, basis)
    top = torch.linalg.svdvals(W)[0]
    for factor in (1.0, 1.5):
        G = torch.zeros_like(W)
        method.transform([(G, factor * W, basis, state)])
        assert error(G, by_autograd(factor * W, 0.3, 2, top)) < 1e-10


def test_one_iteration_a_step_keeps_up_with_the_weight():
    method, W = SR(1.0), gapped((20, 20))
    basis = method.decompose("w", W, None, None)
    state = method.prepare("w", W, basis)
    for step in range(30):
        W = W + 0.1 * torch.randn(20, 20, dtype=W.dtype, generator=torch.Generator().manual_seed(step))
        G = torch.zeros_like(W)
        method.transform([(G, W, basis, state)])
    assert error(G, by_autograd(W, 1.0, 2, 1.0)) < 0.05


def test_zero_weight_and_nonfinite_gradient():
    method = SR(1.0)
    W = torch.stack([torch.zeros(6, 5), torch.ones(6, 5), torch.ones(6, 5)])
    G = torch.zeros_like(W)
    G[1, 2, 3] = torch.nan
    basis = method.decompose("w", W, None, None)
    state = method.prepare("w", W, basis)
    (flags,) = method.transform([(G, W, basis, state)])
    assert flags.tolist() == [True, False, True]
    assert not G[0].any()
    assert G[1].isnan().sum() == 1 and not G[1].nan_to_num().any()
    assert error(G[2], by_autograd(W[2].double(), 1.0, 2, 1.0)) < 1e-6
    # a weight that was zero at the start is found when it grows
    W[0] = 1
    method.transform([(G, W, basis, state)])
    assert error(G[0], G[2] / 2) < 1e-6


@pytest.mark.parametrize("unscaled", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_a_grad_scaler_leaves_the_term_as_it_is(fused, unscaled):
    def trained(enabled):
        torch.manual_seed(3)
        layer = nn.Linear(12, 12)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2, fused=fused)
        attach(layer, optimizer, SR(0.1))
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=enabled)
        for _ in range(5):
            optimizer.zero_grad()
            scaler.scale(layer(torch.randn(8, 12)).square().mean()).backward()
            if unscaled:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        return layer.weight

    assert error(trained(True), trained(False)) < 1e-6


def test_added_once_per_step_however_many_micro_batches():
    torch.manual_seed(3)
    layer = nn.Linear(6, 6)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    attach(layer, optimizer, SR(0.5))
    start = layer.weight.detach().clone()
    expected = added(SR(0.5), start)
    for _ in range(4):
        (0 * layer(torch.randn(2, 6)).sum()).backward()
    optimizer.step()
    assert error(start - layer.weight.detach(), expected) < 1e-5


@pytest.mark.parametrize("settings", [{"lam": -1}, {"lam": float("nan")}, {"k": 0.5}, {"target": "two"}], ids=str)
def test_refuses_settings_out_of_range(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        SR(**settings)


def test_refuses_a_rank_of_its_own():
    layer = nn.Linear(6, 6)
    with pytest.raises(ValueError, match="weight: rank is not a setting of SR"):
        attach(layer, torch.optim.SGD(layer.parameters()), SR(), rank=2)


@pytest.mark.parametrize("method", [SR(), GSR(1.0)], ids=repr)
def test_refuses_a_frozen_model_by_name(method):
    model = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6))
    model[0].weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"frozen: .*\n    0\.weight \(6, 6\)"):
        attach(model, torch.optim.SGD(model.parameters()), method)


def test_refuses_a_step_without_gradients():
    layer = nn.Linear(6, 6)
    optimizer = torch.optim.SGD(layer.parameters())
    attach(layer, optimizer, SR())
    with pytest.raises(ValueError, match="SR: no weight of the model has a gradient"):
        optimizer.step()


def test_attaching_draws_no_random_numbers():
    layer = nn.Linear(6, 6)
    before = torch.get_rng_state()
    attach(layer, torch.optim.SGD(layer.parameters()), SR())
    assert torch.equal(before, torch.get_rng_state())
