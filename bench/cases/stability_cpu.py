"""PS-LoRA's loss and gradients on a CPU, from the factors, beside the dense form in autograd."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from tqdm import tqdm

from bench.cases.adapters_gpu import stability
from bench.run import Run

# modules, side, earlier tasks: those of LLaMA-2-7B, fewer of them
CASES = [(1, 4096, 14), (4, 1024, 4)]


def rows(run: Run) -> Iterator[dict]:
    torch.set_num_threads(1)
    # seven runs of each, of which the longest take seconds
    run = replace(run, seconds=0, least=7)
    for case in tqdm(CASES, "stability_loss on a CPU", disable=run.dry or None):
        yield from stability(run, *case, unit="fp32")
