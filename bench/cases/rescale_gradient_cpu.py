"""The transform on a CPU beside two bare products of its shapes and beside the literal reference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product

import torch
from tqdm import tqdm

from bench.run import RHO, Makers, Run, Trial
from bench.transforms import bare, draw, error
from gsr_kernels import reference, rescale_gradient
from gsr_kernels.cli.floors import transform

SHAPES = [(1024, 1024), (3072, 768), (768, 3072)]
THREADS = (1, 2)
MODES = ("drop", "keep")
TOLERANCE = 1e-4


def rows(run: Run) -> Iterator[dict]:
    run = replace(run, setting=replace(run.setting, rank=None, precision="fp32", gradient="fp32"), least=11)
    for threads, shape in tqdm(list(product(THREADS, SHAPES)), "rescale_gradient on a CPU", disable=run.dry or None):
        torch.set_num_threads(threads)
        yield from _rows(run, *shape)


def _rows(run: Run, d1: int, d2: int) -> Iterator[dict]:
    r = min(d1, d2)
    work = {"two_products": transform(d1, d2, r, "drop", 4, 4, "fp32")}
    for mode in MODES:
        work |= {f"rescale_gradient {mode}": transform(d1, d2, r, mode, 4, 4, "fp32"), f"reference {mode}": []}
    labels = {"shape": f"{d1}x{d2}", "dtype": "float32", "rank": r, "rho": RHO, "threads": torch.get_num_threads()}
    # one workspace, and a few vectors
    labels["allowed_mib"] = round(4 * (r * max(d1, d2) + 8 * r) / 2**20, 3)
    for row in run.compare(labels, work, partial(_makers, run, (d1, d2)), "two_products", peak=True):
        variant, _, mode = row["variant"].partition(" ")
        yield {**row, "variant": variant, "out_of_span": mode}


def _makers(run: Run, shape: tuple[int, int]) -> Makers:
    (basis,), (G,) = draw(run.setting, [shape], run.device)
    out, operands = torch.empty_like(G), (basis.U, basis.S, basis.Vh)

    def ours(mode: str) -> Trial:
        truth = reference.rescale_gradient(G.double(), *(one.double() for one in operands), RHO, mode)
        return Trial(lambda: rescale_gradient(G, basis, RHO, mode, out=out), lambda: error(out, truth), TOLERANCE)

    def literal(mode: str) -> Trial:
        return Trial(lambda: reference.rescale_gradient(G, *operands, RHO, mode))

    makers = {"two_products": lambda: Trial(bare([G], [basis], "drop"))}
    for mode in MODES:
        makers |= {f"rescale_gradient {mode}": partial(ours, mode), f"reference {mode}": partial(literal, mode)}
    return makers
