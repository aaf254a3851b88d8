"""The transform on a CPU beside two bare products of its shapes and beside the literal reference."""

from collections.abc import Iterator

import torch
from tqdm import tqdm

from bench.run import Run
from bench.timing import compared, interleaved, peak_extra_bytes
from gsr_kernels import SpectralBasis, reference, rescale_gradient
from gsr_kernels.cli.floors import transform

SHAPES = [(1024, 1024), (3072, 768), (768, 3072)]
RHO = 0.5


def rows(run: Run) -> Iterator[dict]:
    if run.dry:
        for d1, d2 in SHAPES:
            for mode in ("drop", "keep"):
                work = {"rescale_gradient": transform(d1, d2, min(d1, d2), mode, 4, 4, "fp32")}
                yield from run.compare({"shape": f"{d1}x{d2}", "out_of_span": mode}, work, dict, "rescale_gradient")
        return
    before = torch.get_num_threads()
    cases = [(threads, shape) for threads in (1, 2) for shape in SHAPES]
    for threads, shape in tqdm(cases, "rescale_gradient on a CPU"):
        torch.set_num_threads(threads)
        yield from _rows(threads, *shape)
    torch.set_num_threads(before)


def _rows(threads: int, d1: int, d2: int) -> Iterator[dict]:
    W, G = torch.randn(2, d1, d2)
    basis = SpectralBasis.of(W)
    U, S, Vh, r = basis.U, basis.S, basis.Vh, basis.rank
    out, tall = torch.empty_like(G), d1 > d2
    middle = torch.empty(r, d2) if tall else torch.empty(d1, r)

    def two_products() -> None:
        torch.mm(U.mT, G, out=middle) if tall else torch.mm(G, Vh.mT, out=middle)
        torch.mm(U, middle, out=out) if tall else torch.mm(middle, Vh, out=out)

    variants = {"two_products": two_products}
    for mode in ("drop", "keep"):
        variants[f"rescale_gradient {mode}"] = lambda mode=mode: rescale_gradient(G, basis, RHO, mode, out=out)
        variants[f"reference {mode}"] = lambda mode=mode: reference.rescale_gradient(G, U, S, Vh, RHO, mode)
    _check(G, basis)
    times = compared(interleaved(variants), "two_products")
    for name, run in variants.items():
        yield {
            "variant": name.split()[0],
            "out_of_span": name.partition(" ")[2],
            "shape": f"{d1}x{d2}",
            "dtype": "float32",
            "rank": r,
            "rho": RHO,
            "threads": threads,
            **times[name],
            "flop": 4 * d1 * d2 * r,
            "extra_mib": round(peak_extra_bytes(run) / 2**20, 3),
            # one workspace, and a few vectors
            "allowed_mib": round(4 * (r * max(d1, d2) + 8 * r) / 2**20, 3),
        }


def _check(G: torch.Tensor, basis: SpectralBasis) -> None:
    """Refuse to time what is wrong."""
    truth = reference.rescale_gradient(G.double(), basis.U.double(), basis.S.double(), basis.Vh.double(), RHO)
    error = torch.linalg.norm(rescale_gradient(G, basis, RHO) - truth) / torch.linalg.norm(truth)
    if not error < 1e-4:
        raise RuntimeError(f"rescale_gradient is off by {error:.1e} at {tuple(G.shape)}")
