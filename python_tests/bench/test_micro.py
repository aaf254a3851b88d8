"""Microbenchmarks of tested results: ``pytest python_tests/bench/test_micro.py --benchmark-enable``.

``--benchmark-autosave`` keeps a run, ``--benchmark-compare`` sets the next beside it. Among the tests they run once.
"""

import pytest
import torch

from bench.models import Model
from bench.optimizers import ADAMW, ATTACHED, OURS, Linears, makers
from bench.run import RHO, Run, Setting
from bench.timing import H200
from bench.transforms import draw, error, truth
from gsr_kernels import ops, reference, rescale_gradient

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


@pytest.mark.parametrize("stage", ["project", "rescale"])
def test_a_stage(timed, stage):
    (basis,), (G,) = draw(setting((256, 256)), [(256, 256)], DEVICE)
    operands = (G.to(basis.U.dtype), basis.U, basis.Vh) if stage == "project" else (G[0], basis.S, RHO)
    wide = [one.double() if isinstance(one, torch.Tensor) else one for one in operands]
    out = timed(lambda: getattr(ops, stage)(*operands))
    assert error(out, getattr(reference, stage)(*wide)) < 2e-2


@pytest.mark.parametrize("name", [ADAMW, ATTACHED, OURS])
def test_an_optimizer_step(timed, name):
    run = Run(Setting(Model("micro", dict.fromkeys(SHAPES, 2), {}), precision="fp32"), H200, DEVICE)
    model = Linears(run)
    before = [W.detach().clone() for W in model.parameters()]
    (optimizer,) = makers(run, model)[name]()
    timed(optimizer.step)
    assert all(W.isfinite().all() and not torch.equal(W, old) for W, old in zip(model.parameters(), before))
