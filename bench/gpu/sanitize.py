"""``python -m bench.gpu sanitize``: small problems, of which compute-sanitizer sees every access.

By default every form of Triton's step and every stage; with ``--csrc`` the kernels of the CUDA extension and those of
csrc/candidates that are built.
"""

import argparse
from collections.abc import Sequence
from itertools import product

import torch

from bench.gpu import candidates
from gsr_kernels import SpectralBasis, ops
from gsr_kernels.backends import cuda
from gsr_kernels.backends.triton.forms import UPDATES, Update
from gsr_kernels.backends.triton.moments import Moments, Settings
from gsr_kernels.backends.triton.plan import Plan

# (shape, rank, heads): ragged, truncated, several matrices, heads of rows and of columns
WEIGHTS = [
    ((256, 256), None, None),
    ((128, 384), None, None),
    ((384, 128), None, None),
    ((130, 257), None, None),
    ((17, 33), None, None),
    ((1, 64), None, None),
    ((160, 96), 16, None),
    ((96, 160), 7, None),
    ((3, 64, 40), None, None),
    ((96, 64), None, 4),
    ((64, 96), None, (3, 1)),
]
PRECISIONS = ("fp16", "bf16")
GRADIENTS = (torch.bfloat16, torch.float16, torch.float32)


def main(argv: Sequence[str]) -> int:
    """Run the problems."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu sanitize", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--csrc", action="store_true", help="the CUDA extension and the candidates")
    extension() if parser.parse_args(argv).csrc else steps_and_stages()
    torch.cuda.synchronize()
    print("done")
    return 0


def steps_and_stages() -> None:
    """Run every form of the step, and every stage."""
    for precision, mode, dtype in product(PRECISIONS, ("drop", "keep"), GRADIENTS):
        kept = [SpectralBasis.of(torch.randn(shape), rank, heads, precision) for shape, rank, heads in WEIGHTS]
        # a truncated basis that drops the rest is cuBLAS's
        step([basis.to("cuda") for basis in kept if mode == "keep" or basis.full_rank], dtype, mode)
    for dtype, (shape, _, _) in product(GRADIENTS, WEIGHTS):
        stages(shape, dtype)


def step(bases: list[SpectralBasis], dtype: torch.dtype, mode: str) -> None:
    """Run a step on gradients as allocated, one element further, and with NaN in them.

    Then the same with AdamW: as torch keeps it, with wide moments, and under a wide master.
    """
    given = bases, [dtype] * len(bases), 0.5, [mode] * len(bases)
    gradients = [torch.randn(basis.weight_shape).to("cuda", dtype) for basis in bases]
    shifted = [torch.empty(G.numel() + 1, dtype=dtype, device="cuda")[1:].view(G.shape).copy_(G) for G in gradients]
    wrong = [G.clone().index_fill_(-1, torch.zeros(1, dtype=torch.int64, device="cuda"), torch.nan) for G in gradients]
    plan = Plan(*given)
    for one in (gradients, shifted, wrong):
        plan.run(one)
    settings = Settings(1, torch.device("cuda"))
    settings.set([{"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}], None, None)
    for kept in UPDATES[dtype]:
        moments = [moments_of(basis.weight_shape, kept) for basis in bases]
        plan = Plan(*given, updates=[kept] * len(bases))
        for one in (gradients, shifted, wrong):
            plan.update(one, moments, settings)


def moments_of(shape: torch.Size, kept: Update) -> Moments:
    """Return the moments of a weight that has not moved yet."""
    W = torch.randn(shape).to("cuda", kept.weight)
    m, v = (torch.zeros(shape, dtype=kept.moment, device="cuda") for _ in range(2))
    step, skipped = torch.zeros((), device="cuda"), torch.zeros((), dtype=torch.int64, device="cuda")
    return Moments(W, m, v, step, skipped, 0, None if kept.copied is None else W.to(kept.copied))


def stages(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Run the four operators, one after another."""
    basis = SpectralBasis.of(torch.randn(shape), precision="fp32").to("cuda")
    U, S, Vh = basis.U.to(dtype), basis.S.to(dtype), basis.Vh.to(dtype)
    N = ops.project(torch.randn(shape).to("cuda", dtype), U, Vh, backend="triton")
    H, K = ops.skew(N, S, backend="triton")
    g = ops.rescale(N.diagonal(dim1=-2, dim2=-1), S, 0.5, backend="triton")
    ops.recompose(H, g, K, U, S, Vh, backend="triton")


def extension() -> None:
    """Run one block and clusters, ragged and whole, a zero matrix and NaN: two sweeps at most are all there is."""
    # which loads the operators
    if reason := cuda.refusal(torch.device("cuda", torch.cuda.current_device())):
        raise RuntimeError(f"{reason}: the part build comes first")
    cuda.SWEEPS = 2
    for k in (1, 5, 33, 64, 130, 161, 256):
        A = torch.randn(4, k, k, device="cuda")
        A[1], A[2, 0, 0] = 0, torch.nan
        *_, sweeps = cuda.small_svd(A)
        assert sweeps[2] == -1
    if not cuda.without_cutlass(torch.device("cuda", torch.cuda.current_device())):
        second_products()
    if not candidates.obstacle():
        rescales()


def second_products() -> None:
    """Run it on ragged matrices, G kept and not, right operands of either layout."""
    rows, columns, depth = 130, 264, 72
    left, lying = (torch.randn(3, side, depth, device="cuda").half() for side in (rows, columns))
    scalars = torch.ones(3, device="cuda"), torch.ones(3, 9, device="cuda"), torch.tensor([True, False, True]).cuda()
    tensors = torch.rand(4, 3, rows, columns, device="cuda")
    cuda.second_product_adamw(left, lying, True, False, *scalars, *tensors)
    cuda.second_product_adamw(left, lying.mT.contiguous(), False, True, *scalars, *tensors)


def rescales() -> None:
    """Run every kernel of csrc/candidates on several matrices."""
    from bench.cases.rescale_gpu import Drawn, by_candidate

    for k in (1, 33, 2049, 4097, 16384):
        by_candidate(Drawn([(k, 3), (5, 1)], torch.device("cuda")))()
