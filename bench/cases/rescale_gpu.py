"""The rescale of a whole model in one launch: Triton's beside the candidate in CUDA C++.

The candidate stays if it is faster by 5 %, which no noise makes up, and for bf16 bases alone: it leaves out the scale
that fp16 ones need, as Triton's kernel does here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import triton.language as tl
from torch import Tensor

from bench.run import RHO, Run, Target, Trial
from gsr_kernels import reference
from gsr_kernels.backends.triton import fields
from gsr_kernels.backends.triton.configurations import BLOCK, device_properties, options
from gsr_kernels.backends.triton.step_kernels import rescale_all
from gsr_kernels.cli.floors import Work

TRITON, CANDIDATE = "triton", "CUDA C++"
# rows of a tile of the first product, each of which leaves a partial sum
TILE = 128
TOLERANCE = 1e-5


def rows(run: Run) -> Iterator[dict]:
    if not run.dry:
        from bench.gpu.candidates import require

        require()
    shapes = run.setting.model.matrices
    labels = {"model": run.setting.model.name, "shape": f"{len(shapes)} matrices", "dtype": "float32", "rho": RHO}
    # partial sums and S in, g and δ out
    sizes = [(min(shape), -(-min(shape) // TILE)) for shape in shapes]
    work = [Work(20 * sum(k for k, _ in sizes), 4 * sum(k * (parts + 3) for k, parts in sizes), "fp32")]

    def trial(of: Callable[[Drawn], Callable[[], object]]) -> Trial:
        drawn = Drawn(sizes, run.device)
        return run.trial(of(drawn), drawn.error, TOLERANCE)

    makers = {TRITON: partial(trial, by_triton), CANDIDATE: partial(trial, by_candidate)}
    targets = {CANDIDATE: [Target(0.95, TRITON)]}
    yield from run.compare(labels, dict.fromkeys(makers, work), lambda: makers, TRITON, targets)


@dataclass
class Drawn:
    """Partial sums of all matrices of sizes (k, parts), one after another, and where results go."""

    sizes: list[tuple[int, int]]
    device: torch.device

    def __post_init__(self) -> None:
        k, parts = torch.tensor(self.sizes).T
        # where the rows [k] and the partial sums of each matrix begin
        self.offsets, self.starts = k.cumsum(0) - k, (k * parts).cumsum(0) - k * parts
        self.table = torch.stack([self.starts, self.offsets, parts, k], dim=1)
        self.partials = torch.randn(int((k * parts).sum()), device=self.device)
        S = [torch.rand(one, device=self.device).add(0.1).sort(descending=True).values for one in k.tolist()]
        self.S, self.rho = torch.cat(S), torch.full((1,), RHO, device=self.device)
        self.g, self.delta = torch.full((2, len(self.S)), torch.nan, device=self.device)
        self.finite = torch.zeros(len(k), dtype=torch.bool, device=self.device)

    def error(self) -> float:
        """Return that of g and δ, NaN where a matrix was flagged."""
        distance = norm = 0.0
        for (k, parts), offset, start in zip(self.sizes, self.offsets.tolist(), self.starts.tolist()):
            g = self.partials[start : start + k * parts].double().view(parts, k).sum(0)
            S, at = self.S[offset : offset + k].double(), slice(offset, offset + k)
            delta = reference.rescale(g, S, RHO) - g
            for found, true in ((self.g[at], g), (self.delta[at], delta)):
                distance += (found - true).square().sum().item()
                norm += true.square().sum().item()
        return (distance / norm) ** 0.5 if self.finite.all() else torch.nan


def by_triton(drawn: Drawn) -> Callable[[], object]:
    """Return the launch of a step's plan for bases in bf16, which need no scale."""
    count, device = len(drawn.sizes), drawn.device
    rows = np.zeros((count, fields.FIELDS.value), np.int64)
    names = (fields.PARTIALS, fields.DIAGONAL, fields.PARTS, fields.K)
    rows[:, [name.value for name in names]] = drawn.table.numpy()
    rows[:, fields.S.value] = drawn.S.data_ptr() + 4 * drawn.offsets.numpy()
    table = torch.from_numpy(rows).to(device)
    extremes, scales = torch.zeros(count, device=device), torch.empty(count, device=device)
    grid = (min(count, device_properties(device)[1]),)

    def launch() -> Tensor:
        rescale_all[grid](
            table, 0, count, drawn.partials, extremes, drawn.g, drawn.delta, scales, drawn.finite, drawn.rho,
            reference.FLOOR, 0, 0, DTYPE=tl.bfloat16, BLOCK=BLOCK, **options(num_warps=8),
        )  # fmt: skip
        return drawn.delta

    return launch


def by_candidate(drawn: Drawn) -> Callable[[], object]:
    """Return the launch of csrc/candidates/rescale.cu."""
    segments, longest = drawn.table.to(drawn.device), max(k for k, _ in drawn.sizes)
    given = (segments, longest, drawn.partials, drawn.S, drawn.rho, reference.FLOOR)
    return lambda: torch.ops.gsr_candidates.rescale(*given, drawn.g, drawn.delta, drawn.finite)
