import torch

from gsr_kernels import SpectralBasis
from gsr_kernels.backends.torch.rescale_gradient import rescale_gradient
from gsr_kernels.backends.triton.model import ModelStep
from python_tests.oracle import error


def test_a_model_with_weights_that_no_plan_takes():
    bases = [
        SpectralBasis.of(torch.randn(24, 24)),
        SpectralBasis.of(torch.randn(24, 40), rank=5),
        SpectralBasis.of(torch.randn(2, 16, 24)),
    ]
    gradients = [torch.randn(basis.shape) for basis in bases]
    gradients[2][1, 0, 0] = torch.nan
    expected = [torch.empty_like(G) for G in gradients]
    for G, basis, out in zip(gradients, bases, expected):
        rescale_gradient(G, basis.U, basis.S, basis.Vh, 0.5, "drop", out)
    dtypes = [G.dtype for G in gradients]
    step = ModelStep(bases, dtypes, 0.5, "drop")
    assert step.fits(bases, dtypes) and not step.fits(bases[:2], dtypes[:2])
    assert not step.fits([*bases[:2], SpectralBasis.of(torch.randn(2, 16, 24))], dtypes)
    finite = step.run(gradients)
    assert [flag.tolist() for flag in finite] == [True, True, [True, False]]
    for G, right in zip([*gradients[:2], gradients[2][0]], [*expected[:2], expected[2][0]]):
        assert error(G, right) < 1e-6
    assert torch.equal(gradients[2][1].isnan(), expected[2][1].isnan())
