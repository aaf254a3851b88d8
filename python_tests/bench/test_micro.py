"""Microbenchmarks of tested results: ``pytest python_tests/bench --benchmark-only``.

``--benchmark-autosave`` keeps a run, ``--benchmark-compare`` sets the next beside it. Among the tests they run once.
"""

import pytest
import torch

from bench.cases.adapters_gpu import dense_loss
from bench.models import Model
from bench.optimizers import ADAMW, ATTACHED, METHODS, OURS, Linears, makers
from bench.run import RHO, Run, Setting
from bench.timing import H200
from bench.transforms import draw, error, truth
from gsr_kernels import RiemannianAdamW, find_factors, ops, randomized_svd, reference, rescale_gradient
from gsr_kernels.adapters.stability import auto_alpha, stability_loss
from gsr_kernels.backends.torch.sketch import omega

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHAPES = [(256, 256), (512, 128), (128, 512)]


def setting(shape, rank=None):
    return Setting(Model("micro", {shape: 1}, {}), rank, "fp16" if DEVICE.type == "cuda" else "fp32")


@pytest.fixture
def timed(benchmark):
    """Times a call, the device waited for."""

    def timed(call):
        def run():
            result = call()
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            return result

        return benchmark(run)

    return timed


@pytest.mark.parametrize("mode", ["drop", "keep"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rescale_gradient(timed, shape, mode):
    (basis,), (G,) = draw(setting(shape), [shape], DEVICE)
    out = timed(lambda: rescale_gradient(G, basis, RHO, mode))
    assert error(out, truth(G, basis, RHO, mode)) < 2e-2


@pytest.mark.parametrize("rank", [8, 64])
def test_truncated(timed, rank):
    (basis,), (G,) = draw(setting((512, 128), rank), [(512, 128)], DEVICE)
    out = timed(lambda: rescale_gradient(G, basis, RHO))
    assert error(out, truth(G, basis, RHO, "keep")) < 2e-2


def test_the_literal_chain(timed):
    (basis,), (G,) = draw(setting((256, 256)), [(256, 256)], DEVICE)
    U, Vh = basis.U.float(), basis.Vh.float()
    out = timed(lambda: reference.rescale_gradient(G, U, basis.S, Vh, RHO))
    assert out.isfinite().all() and out.shape == G.shape


@pytest.mark.parametrize("stage", ["project", "rescale", "skew", "recompose"])
def test_a_stage(timed, stage):
    (basis,), (G,) = draw(setting((256, 256)), [(256, 256)], DEVICE)
    U, S, Vh = basis.U, basis.S, basis.Vh
    H, K = reference.skew(G, S)
    operands = {
        "project": (G.to(U.dtype), U, Vh),
        "rescale": (G[0], S, RHO),
        "skew": (G, S),
        "recompose": (H, G[0], K, U, S, Vh),
    }[stage]
    wide = [one.double() if isinstance(one, torch.Tensor) else one for one in operands]
    out, truth_of = timed(lambda: getattr(ops, stage)(*operands)), getattr(reference, stage)(*wide)
    pairs = zip(out, truth_of) if stage == "skew" else [(out, truth_of)]
    assert all(error(one, right) < 2e-2 for one, right in pairs)


@pytest.mark.parametrize("kind", ["gaussian", "sparse"])
def test_sketch(timed, kind):
    W = torch.randn(512, 256, device=DEVICE)
    found = timed(lambda: ops.implementation("sketch", "auto", DEVICE)(W, 32, 0, kind))
    assert error(found, W.double() @ omega(256, 32, 0, kind, DEVICE).double()) < 2e-3


def test_randomized_svd(timed):
    W = torch.randn(512, 16, device=DEVICE) @ torch.randn(16, 256, device=DEVICE)
    found = timed(lambda: randomized_svd(W, 16))
    assert error(found.S, torch.linalg.svdvals(W)[:16]) < 1e-4


def test_ps_lora_loss(timed):
    factors = [torch.randn(shape, device=DEVICE) / 8 for shape in ((256, 8), (8, 256), (256, 32), (32, 256))]
    for factor in factors[:2]:
        factor.requires_grad_()

    def step():
        loss = stability_loss(*factors)
        return loss.detach(), *torch.autograd.grad(loss, factors[:2])

    loss, *gradients = timed(step)
    alpha = auto_alpha(*factors[2:])
    wide = [factor.detach().double().requires_grad_() for factor in factors]
    right = dense_loss(*wide, alpha.double(), "both")
    assert error(loss, right) < 1e-3
    assert all(error(one, of) < 1e-3 for one, of in zip(gradients, torch.autograd.grad(right, wide[:2])))


def test_eblora_step(timed):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["0", "1"], r=8, lora_alpha=16)
    model = peft.get_peft_model(torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(2))).to(DEVICE), config)
    factors = find_factors(model)
    for one in factors:
        torch.nn.init.orthogonal_(one.A)
        torch.nn.init.orthogonal_(one.B)
        one.A.grad, one.B.grad = torch.randn_like(one.A), torch.randn_like(one.B)
    timed(RiemannianAdamW(factors).step)
    for one in factors:
        assert torch.dist(one.A @ one.A.mT, torch.eye(8, device=DEVICE)) < 1e-4


@pytest.mark.parametrize("name", [ADAMW, ATTACHED, OURS, *METHODS])
def test_an_optimizer_step(timed, name):
    run = Run(Setting(Model("micro", dict.fromkeys(SHAPES, 2), {}), precision="fp32"), H200, DEVICE)
    model = Linears(run)
    before = [W.detach().clone() for W in model.parameters()]
    (optimizer,) = makers(run, model)[name]()
    timed(optimizer.step)
    assert all(W.isfinite().all() and not torch.equal(W, old) for W, old in zip(model.parameters(), before))
