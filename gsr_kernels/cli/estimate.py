"""``python -m gsr_kernels estimate``: the costs of GSR on a model, from its config.json alone."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from torch import nn

from gsr_kernels.cli import aligned, path_of
from gsr_kernels.cli.floors import Kind, cost, kinds_of
from gsr_kernels.cli.memory import Memory, decomposed, device, room
from gsr_kernels.io.saved_model import build
from gsr_kernels.messages import first_sentence
from gsr_kernels.optim.targets import linear_matrices
from gsr_kernels.options import resolve_rank

BASIS_BYTES = {"fp32": 4, "fp16": 2}

# the intervals of DeepSpeed's stages, of all weights of a group or of each weight
ZERO = "ZeRO 1, 2", "ZeRO 3"
# those of Megatron-Core's distributed optimizer, what it has as one matrix, and of which it shards the columns
MEGATRON = "Megatron"
FUSED = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "fc1", "up_proj": "fc1"}
ROW_PARALLEL = {"o_proj", "out_proj", "down_proj", "c_proj", "fc2", "dense", "dense_4h_to_h"}

# truncated options that are shown where the model's weights have as many directions
RANKS = (64, 256)


@dataclass(frozen=True)
class Share:
    """The share of one of several ranks: bytes of bases held, and in a step elements summed and bytes gathered."""

    held: float
    summed: int
    # whole, the rank's own part included
    gathered: int
    # bytes, in float32, of the products before the sum for those after it, of all weights
    kept: float = 0.0


def share(
    kinds: Sequence[Kind],
    rank: int | None,
    out_of_span: str,
    placement: str,
    shards: int,
    basis_bytes: int,
    shard_bases: bool = False,
    tensor: int = 1,
) -> Share:
    """Return the share of one of ``shards`` ranks: of those with most experts, which are distributed whole.

    ``placement`` is "rows", fully_shard's own, or "short side", that of ``shard_placement_fn``: rows as well where
    ``shards`` does not divide the columns; or one of ``ZERO``, DeepSpeed's intervals, or ``MEGATRON``, without experts,
    ``tensor`` of the ranks in tensor parallelism. The rest is as in ``cost``.
    """
    held, summed, gathered, kept = 0.0, 0, 0, 0.0
    for count, d1, d2, experts, columns in kinds:
        k = min(d1, d2, rank or d1)
        flat = placement in (*ZERO, MEGATRON)
        if experts > 1 and flat:
            continue
        if experts > 1:
            held += count * math.ceil(experts / shards) * (k * (d1 + d2) * basis_bytes + 4 * k)
            continue
        rows = not columns if flat else placement == "rows" or d1 <= d2 or d2 % shards > 0
        part, other = (d1, d2) if rows else (d2, d1)
        # of stages 1 and 2 and Megatron a rank has whole weights, or parts, but for the two at the ends of its interval
        apart = shards // tensor if shard_bases or placement in (ZERO[0], MEGATRON) else 1
        held += count * (k * (part / shards + other / apart) * basis_bytes + 4 * k)
        # a truncated basis sums its core; a whole one nothing but the diagonal where its short side is sharded
        whole = k == min(d1, d2)
        long = whole and part > other and out_of_span == "drop"
        long = long and not flat
        free = out_of_span == "keep" or k == d1 == d2 or (whole and not long and not flat)
        summed += count * (k if free else k * k)
        if out_of_span == "drop" and whole and part < other and not flat:
            kept += 4 * count * k * part / shards
        # before the sum and after it, but where the sum comes before all that is gathered
        gathered += count * shard_bases * (1 if long else 2) * k * other * basis_bytes
    return Share(held, summed, gathered, kept)


def model_kinds(folder: Path, megatron: bool = False) -> tuple[list[Kind], list[int]]:
    """Return the weights that attach() matches, and the elements of each parameter.

    Raises ValueError where there is no model, or one of quantised weights, of which attach() takes none.

    With ``megatron`` as Megatron-Core has them: q, k and v in one, the gate and what it gates too.
    """
    try:
        model = build(folder)
        kinds = (megatron_kinds if megatron else kinds_of)(model)
    except (LookupError, ValueError) as error:
        raise ValueError(
            f"MODEL_DIR: no weights of {folder}: {first_sentence(error)}; print(attach(model, optimizer, …)) of a "
            "loaded model says the bytes of its bases"
        ) from error
    config: Any = model.config
    if quantised := getattr(config, "quantization_config", None):
        method = quantised.get("quant_method", "bitsandbytes")
        raise ValueError(
            f"MODEL_DIR: the weights of {folder} are quantised ({method}), and attach() takes none such: load the "
            "model in a float dtype and save it; its figures are those of config.json without quantization_config"
        )
    return kinds, [one.numel() for one in model.parameters()]


def training(kinds: Sequence[Kind], parameters: Sequence[int], size: int, bases: int = 0) -> Memory:
    """Return the memory of training all parameters by AdamW, in ``size`` bytes an element, on one device."""
    whole = size * sum(parameters)
    workspace = decomposed([(kind.d1, kind.d2) for kind in kinds])
    return Memory(whole, whole, 2 * whole, bases, None, 0, 0, 0, workspace, size * max(parameters))


def megatron_kinds(model: nn.Module) -> list[Kind]:
    """Return ``kinds_of`` of the model in Megatron-Core's layers."""
    found: dict[str, Kind] = {}
    for target in linear_matrices(model):
        *path, own = target.name.removesuffix(".weight").split(".")
        *experts, d1, d2 = target.parameter.shape
        name = ".".join([*path, FUSED.get(own, own)])
        before = found[name].d1 if name in found else 0
        found[name] = Kind(1, before + d1, d2, math.prod(experts), own in ROW_PARALLEL)
    return [kind._replace(weights=count) for kind, count in Counter(found.values()).items()]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    parser.add_argument(
        "folder", type=path_of, metavar="MODEL_DIR", help="a transformers model, or its config.json, which is enough"
    )
    parser.add_argument("--rank", type=int, action="append", metavar="K", help="a truncated option (default: 64, 256)")
    dtypes = "of gradients, weights and moments (default: %(default)s)"
    parser.add_argument("--gradient", choices=["fp32", "bf16"], default="fp32", help=dtypes)
    parser.add_argument("--memory", type=float, metavar="M", help="your device's, in GB (default: this machine's)")
    parser.add_argument("--shards", type=int, metavar="P", help="also what a rank holds where P share each weight")
    parser.add_argument("--zero", type=int, choices=[1, 2, 3], help="where DeepSpeed's ZeRO of this stage shards them")
    parser.add_argument(
        "--megatron", type=int, metavar="T", help="where Megatron-Core does, T of P in tensor parallelism"
    )
    parser.add_argument("--tflops", type=float, metavar="R", help="your device's products, in TFLOP/s, for the ms")
    parser.add_argument("--bandwidth", type=float, metavar="B", help="your device's memory, in GB/s, for the ms")


def run(args: argparse.Namespace) -> None:
    """Print a line for each option; ValueError for a number out of range, or one rate without the other."""
    rates = (args.tflops, args.bandwidth)
    if (args.tflops is None) != (args.bandwidth is None):
        raise ValueError("--tflops and --bandwidth belong together: give both, or none for no ms")
    if any(rate is not None and not rate > 0 for rate in rates):
        raise ValueError(f"--tflops and --bandwidth must be positive, got {args.tflops} and {args.bandwidth}")
    if args.memory is not None and not args.memory > 0:
        raise ValueError(f"--memory must be positive, got {args.memory}")
    if args.shards is not None and args.shards < 1:
        raise ValueError(f"--shards must be at least 1, got {args.shards}")
    if args.zero and args.shards is None:
        raise ValueError("--zero needs --shards, the number of processes that share the weights")
    if args.megatron and (args.zero or args.shards is None or args.megatron < 1 or args.shards % args.megatron):
        raise ValueError(
            "--megatron needs --shards, a multiple of it: all processes of a stage; and goes without --zero"
        )
    kinds, parameters = model_kinds(args.folder, bool(args.megatron))
    largest = max(min(kind.d1, kind.d2) for kind in kinds)
    ranks = args.rank or [rank for rank in RANKS if rank < largest]
    for rank in ranks:
        resolve_rank(rank, {f"{kind.d1}x{kind.d2}": (kind.d1, kind.d2) for kind in kinds})
    matrices = sum(kind.weights * kind.experts for kind in kinds)
    covered = sum(kind.weights * kind.experts * kind.d1 * kind.d2 for kind in kinds)
    total, size = sum(parameters), 4 if args.gradient == "fp32" else 2
    print(f"{matrices} matrices, {covered:,} of {total:,} parameters ({covered / total:.1%})")
    has = args.memory or room() / 1e9
    _print_training(training(kinds, parameters, size), total, args.gradient)
    options = [(None, "drop"), (None, "keep"), *((rank, "keep") for rank in ranks), *((rank, "drop") for rank in ranks)]
    columns = "rank", "outside", "bases in", "bases GB", "TFLOP", "moved GB"
    rows = [(*columns, *(["ms"] if args.tflops else []), "training GB")]
    for (rank, out_of_span), (name, element) in product(options, BASIS_BYTES.items()):
        one = cost(kinds, rank, out_of_span, element, size)
        figures: tuple[str, ...] = tuple(map(_figure, (one.bases / 1e9, one.flop / 1e12, one.moved / 1e9)))
        if args.tflops is not None:
            figures += (f"{max(one.flop / args.tflops / 1e9, one.moved / args.bandwidth / 1e6):.2f}",)
        most = training(kinds, parameters, size, one.bases).peak / 1e9
        fits = "fits" if most <= has else "DOES NOT FIT"
        rows.append((str(rank or "all"), out_of_span, name, *figures, f"{_figure(most)} {fits}"))
    print("\n".join(aligned(rows)))
    print(f"training on {'a device' if args.memory else device()} of {_figure(has)} GB; activations come on top")
    print("one optimizer step; a lower bound, of which ms is the larger of the products' and the memory's time")
    if args.shards is not None:
        engine = MEGATRON if args.megatron else ZERO[args.zero == 3] if args.zero else None
        placements = (engine,) if engine else ("rows", "short side")
        _print_shares(kinds, options, args.shards, placements, args.megatron or 1)


def _figure(number: float) -> str:
    """Return a number with two decimals, a small one with two digits."""
    return f"{number:.2f}" if number >= 0.1 else f"{number:.2g}"


def _print_training(memory: Memory, parameters: int, dtype: str) -> None:
    parts = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "AdamW's moments": memory.moments,
        "decompositions in attach()": memory.decomposition,
        "workspace of a step": memory.beside,
    }
    sizes = ", ".join(f"{name} {_figure(part / 1e9)}" for name, part in parts.items())
    print(f"training on one device, in {dtype}, takes beside the bases, in GB: {sizes}")
    if dtype != "fp32":
        print(f"an optimizer that keeps weights and moments in fp32 too adds {_figure(8 * parameters / 1e9)} GB")


def _print_shares(
    kinds: Sequence[Kind],
    options: Sequence[tuple[int | None, str]],
    shards: int,
    placements: tuple[str, ...],
    tensor: int = 1,
) -> None:
    print(f"\nof {shards} ranks that share each weight, one:")
    columns = "rank", "outside", "bases in", "placement", "holds GB", "sums MB a step", "keeps GB"
    rows = [(*columns, "or with shard_bases holds GB", "gathers MB a step")]
    for (rank, out_of_span), (name, size), placement in product(options, BASIS_BYTES.items(), placements):
        whole, shared = (
            share(kinds, rank, out_of_span, placement, shards, size, each, tensor) for each in (False, True)
        )
        held, summed, kept = f"{whole.held / 1e9:.2f}", f"{4 * whole.summed / 1e6:.2f}", f"{whole.kept / 1e9:.2f}"
        with_sharded_bases = f"{shared.held / 1e9:.2f}", f"{shared.gathered / 1e6:.2f}"
        rows.append((str(rank or "all"), out_of_span, name, placement, held, summed, kept, *with_sharded_bases))
    # Megatron takes no shard_bases
    print("\n".join(aligned([row[: len(columns)] for row in rows] if MEGATRON in placements else rows)))
    experts = (
        "experts in one parameter are distributed whole: nothing is summed or gathered, a rank with most is counted"
    )
    if placements[0] in (*ZERO, MEGATRON):
        print("of weights that two ranks share both hold Vh, which is not counted under stages 1 and 2, and Megatron")
        experts = "are not counted: they are not supported there"
    else:
        print("rows is fully_shard's own choice, short side that of shard_placement_fn=gsr_kernels.shard_placement_fn")
        print(
            "keeps is what products before the sum leave to those after it, in float32, until the step has passed them"
        )
    if any(kind.experts > 1 for kind in kinds):
        print(f"experts in one parameter {experts}")
