"""``python -m gsr_kernels tune``: check and time the ways to compute a step on this GPU, ahead of training."""

from __future__ import annotations

import argparse
import re
from functools import partial

import torch

from gsr_kernels.backends import choice
from gsr_kernels.backends.dispatch import STEPS, has_kernels, unsupported
from gsr_kernels.cli import aligned, device_of, path_of, rank_of
from gsr_kernels.cli.estimate import model_kinds
from gsr_kernels.options import resolve_rank

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    parser.add_argument("folder", type=path_of, nargs="?", metavar="MODEL_DIR", help="a transformers model")
    parser.add_argument("--shape", action="append", default=[], metavar="D1xD2", help="a weight, as 8192x2048")
    parser.add_argument("--rank", type=rank_of, help="directions that are kept (default: all)")
    parser.add_argument("--gradient", choices=DTYPES, default="bf16", help="dtype (default: %(default)s)")
    parser.add_argument("--basis", choices=["fp16", "bf16"], default="fp16", help="dtype (default: %(default)s)")
    parser.add_argument("--device", type=device_of, default="cuda", help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="for all timing (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Print, of each kind of step, the milliseconds of each way and the one that is used from now on.

    Raises ValueError without a GPU, without a weight, or for a shape or rank that is none.
    """
    device = torch.device(args.device)
    if not has_kernels(device):
        raise ValueError(f"--device: on {device} torch computes every step; there is nothing to choose")
    sides = {(kind.d1, kind.d2) for kind in model_kinds(args.folder)[0]} if args.folder else set()
    sides |= {_sides(text) for text in args.shape}
    if not sides:
        raise ValueError("give MODEL_DIR, or a weight by --shape D1xD2")
    ranks = resolve_rank(args.rank, {f"{d1}x{d2}": (d1, d2) for d1, d2 in sides})
    dtypes = DTYPES[args.gradient], DTYPES[args.basis]
    cases = []
    for d1, d2 in sorted(sides):
        rank = ranks[f"{d1}x{d2}"]
        form = *dtypes, (d1, d2, min(rank or d1, d1, d2)), "drop" if rank is None else "keep"
        cases += [choice.Case(op, *form) for op in STEPS if not unsupported(op, *form)]
    from gsr_kernels.backends.triton import trial

    ways = partial(trial.check, device=device), partial(trial.clock, device=device)
    found = choice.choose(choice.machine(device), cases, *ways, budget=args.seconds)
    rows: list[tuple[str, ...]] = [("ms", *choice.WAYS, "used")]
    for key, verdict in found.items():
        cells = [_milliseconds(verdict, way) for way in choice.WAYS]
        rows.append((key, *cells, verdict.backend))
    print("\n".join(aligned(rows)))


def _milliseconds(verdict: choice.Verdict, way: str) -> str:
    if way in verdict.wrong:
        return "wrong"
    return f"{1e3 * verdict.seconds[way]:.3g}" if way in verdict.seconds else "-"


def _sides(text: str) -> tuple[int, int]:
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", text):
        raise ValueError(f"--shape must be D1xD2, as 8192x2048, got {text!r}")
    d1, d2 = map(int, text.split("x"))
    return d1, d2
