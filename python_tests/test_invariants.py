"""What equation (7) and the transform promise, over random shapes, spectra and signs (float64)."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gsr_kernels import SpectralBasis, rescale_gradient
from gsr_kernels.backends.torch.stages import rescale
from python_tests.oracle import error

sides = st.integers(1, 9)
rhos = st.floats(0, 1)
seeds = st.integers(0, 2**31)
modes = st.sampled_from(["drop", "keep"])
numbers = st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(0, 1e3)), min_size=1, max_size=12)


def drawn(seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def diagonal_and_spectrum(pairs):
    g, S = torch.tensor(pairs, dtype=torch.float64).unbind(-1)
    return g, S.sort(descending=True).values


@given(numbers, rhos)
def test_signs_stay_and_zero_stays_zero(pairs, rho):
    g, S = diagonal_and_spectrum(pairs)
    # a direction's share may be too small for a float, never of the other sign
    rescaled = rescale(g, S, rho)
    assert (rescaled.sign() * g.sign() >= 0).all()
    assert (rescaled[g == 0] == 0).all()


@given(numbers, rhos)
def test_each_sign_group_keeps_its_energy(pairs, rho):
    g, S = diagonal_and_spectrum(pairs)
    rescaled = rescale(g, S, rho)
    for group in (g > 0, g < 0):
        assert torch.allclose(rescaled[group].square().sum(), g[group].square().sum(), rtol=1e-12, atol=1e-290)


@given(numbers)
def test_rho_zero_leaves_g(pairs):
    g, S = diagonal_and_spectrum(pairs)
    assert torch.equal(rescale(g, S, 0.0), g)


@given(numbers, rhos, st.floats(1e-3, 1e3))
def test_scaling_the_weight_changes_nothing(pairs, rho, scale):
    g, S = diagonal_and_spectrum(pairs)
    # a σ at the floor itself may fall on either side of it after scaling
    S = torch.where(1e-5 * S.max() < S, S, 0)
    assert torch.allclose(rescale(g, S * scale, rho), rescale(g, S, rho), rtol=1e-9, atol=1e-290)


@given(numbers)
def test_within_a_sign_group_the_share_grows_with_sigma_where_positive_and_falls_where_negative(pairs):
    g, S = diagonal_and_spectrum(pairs)
    alive = 1e-6 * S.max() < S
    rescaled = rescale(g, S, 1.0)
    # ε√φ is non-decreasing in σ, and S descends
    for group in (alive & (g > 0), alive & (g < 0)):
        values = rescaled[group]
        assert (values.diff() <= 1e-12 * values.abs().max().item() if len(values) > 1 else torch.ones(1)).all()


@settings(deadline=None)
@given(seeds, sides, sides, rhos, modes, st.floats(1e-6, 1e6))
def test_homogeneous_in_the_gradient(seed, d1, d2, rho, mode, scale):
    W, G = drawn(seed, (d1, d2), (d1, d2))
    basis = SpectralBasis.of(W)
    assert error(rescale_gradient(G * scale, basis, rho, mode), rescale_gradient(G, basis, rho, mode) * scale) < 1e-10


@settings(deadline=None)
@given(seeds, sides, sides, rhos, modes)
def test_equivariant_under_orthogonal_maps(seed, d1, d2, rho, mode):
    W, G, Q, R = drawn(seed, (d1, d2), (d1, d2), (d1, d1), (d2, d2))
    Q, R = torch.linalg.qr(Q).Q, torch.linalg.qr(R).Q
    basis = SpectralBasis.of(W)
    turned = SpectralBasis(Q @ basis.U, basis.S, basis.Vh @ R)
    expected = Q @ rescale_gradient(G, basis, rho, mode) @ R
    # where g crosses zero the transform jumps
    g = (basis.U * (G @ basis.Vh.mT)).sum(-2)
    if g.abs().min() > 1e-9:
        assert error(rescale_gradient(Q @ G @ R, turned, rho, mode), expected) < 1e-9


@settings(deadline=None)
@given(seeds, sides, sides, rhos, st.integers(1, 9))
def test_keep_preserves_the_norm_and_rho_zero_is_the_identity(seed, d1, d2, rho, rank):
    W, G = drawn(seed, (d1, d2), (d1, d2))
    basis = SpectralBasis.of(W, rank=min(rank, d1, d2))
    kept = rescale_gradient(G, basis, rho, "keep")
    assert torch.allclose(kept.norm(), G.norm(), rtol=1e-10)
    assert torch.equal(rescale_gradient(G, basis, 0.0, "keep"), G)
