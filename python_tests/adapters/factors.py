"""Random factors of adapters, ranks and shapes that fit no tile, and what every backend must reach on them."""

import torch

from gsr_kernels.adapters.stability import auto_alpha, stability_loss
from python_tests.adapters import reference
from python_tests.oracle import assert_as_good, double

# (modules), d1, d2, rank, rank of the earlier tasks together
SHAPES = [((), 7, 5, 1, 1), ((2,), 40, 33, 3, 5), ((1, 2), 33, 70, 4, 20), ((1,), 64, 32, 17, 3)]


def draw(shape, dtype=torch.float64, size=1.0):
    """``B, A, old_B, old_A`` with entries of D and P of about ``size``."""
    batch, d1, d2, r, R = shape
    pairs = [((*batch, d1, rank), (*batch, rank, d2)) for rank in (r, R)]
    scale = [(size / rank**0.5) ** 0.5 for rank in (r, R)]
    return [(s * torch.randn(one, dtype=torch.float64)).to(dtype) for pair, s in zip(pairs, scale) for one in pair]


def dense(B, A, old_B, old_A, alpha, terms):
    """Loss, and gradients of its weighted sum over modules, in the dtype of the operands."""
    B, A = B.clone().requires_grad_(), A.clone().requires_grad_()
    loss = reference.stability_loss(B, A, old_B, old_A, alpha, terms)
    weights = torch.arange(1.0, loss.numel() + 1, dtype=loss.dtype).view(loss.shape)
    return loss.detach(), *torch.autograd.grad((weights * loss).sum(), (B, A))


def ours(B, A, old_B, old_A, alpha, terms, backend):
    B, A = B.clone().requires_grad_(), A.clone().requires_grad_()
    loss = stability_loss(B, A, old_B, old_A, alpha, terms, backend)
    weights = torch.arange(1.0, loss.numel() + 1, dtype=loss.dtype).view(loss.shape)
    return loss.detach(), *torch.autograd.grad((weights * loss).sum(), (B, A))


def check_float32(shape, terms, backend):
    """At most twice as far from the truth as the dense form, at the size of real adapters and the default alpha."""
    factors = draw(shape, torch.float32, size=1e-3)
    alpha = auto_alpha(*factors[2:]).float()
    truth = dense(*double(*factors), alpha.double(), terms)
    same = dense(*factors, alpha, terms)
    for found, right, other in zip(ours(*factors, alpha, terms, backend), truth, same):
        # sums of a few thousand terms in another order than torch's
        assert_as_good(found, right, other, floor=4e-7)


def check_half(dtype, backend):
    """16-bit factors are multiplied and summed in float32; their gradients are rounded once."""
    factors = draw(SHAPES[1], dtype)
    truth, same = dense(*double(*factors), 1.0, "both"), dense(*(f.float() for f in factors), 1.0, "both")
    loss, *gradients = ours(*factors, 1.0, "both", backend)
    assert loss.dtype == torch.float32 and all(one.dtype == dtype for one in gradients)
    assert_as_good(loss, truth[0], same[0], floor=1e-6)
    for found, right, other in zip(gradients, truth[1:], same[1:]):
        assert_as_good(found, right, other.to(dtype))


def draw_tasks(d1, d2, rank, tasks):
    """``W [d1, d2]``, ``B [tasks, d1, rank]`` and ``A [tasks, rank, d2]`` in float64."""
    shapes = (d1, d2), (tasks, d1, rank), (tasks, rank, d2)
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]
