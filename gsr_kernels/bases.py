"""``python -m gsr_kernels bases``: the singular bases of a model ahead of time, from its shards, tensor by tensor."""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch

from gsr_kernels.basis import STORAGE, SpectralBasis, fingerprint, load_bases, save_bases
from gsr_kernels.checkpoint import Stored, stored_matrices
from gsr_kernels.linalg import randomized_svd, svd
from gsr_kernels.linalg.cost import progress, svd_cost
from gsr_kernels.optim.rank import resolve_rank

# the side of the matrix that a dry run decomposes for its estimate
SAMPLE = 384


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model_dir", metavar="MODEL_DIR", help="directory with the model's *.safetensors")
    parser.add_argument("--out", required=True, metavar="FILE", help="bases file; what fits in it already is kept")
    parser.add_argument(
        "--rank", type=_rank, help="directions of each weight: a number, or a share below 1; default all"
    )
    parser.add_argument("--targets", metavar="REGEX", help="names of the tensors; default all but embeddings and heads")
    parser.add_argument("--precision", choices=sorted(STORAGE), default="fp32", help="of U and Vh (default fp32)")
    parser.add_argument("--randomized", action="store_true", help="sketch instead of decomposing exactly; needs --rank")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default %(default)s")
    parser.add_argument("--dry-run", action="store_true", help="print bytes and time, write nothing")


def run(args: argparse.Namespace) -> None:
    """Decomposes what the file does not hold yet and writes it whole; a refusal changes nothing."""
    if args.randomized and args.rank is None:
        raise ValueError("--randomized needs --rank: a whole basis is decomposed exactly")
    matrices = stored_matrices(args.model_dir, args.targets)
    ranks = resolve_rank(args.rank, {stored.name: (stored.shape[-2], stored.shape[-1]) for stored in matrices})
    kept = _fitting(args.out, matrices, ranks, STORAGE[args.precision])
    missing = sorted((one for one in matrices if one.name not in kept), key=lambda one: -svd_cost(one.shape))
    size = sum(_bytes(stored.shape, ranks[stored.name], STORAGE[args.precision]) for stored in matrices)
    print(f"{len(matrices)} weights, {len(kept)} of them in {args.out}; {size / 2**20:.1f} MiB")
    if args.dry_run:
        print(f"about {_seconds(missing, ranks, args):.1f} s to decompose {len(missing)} on {args.device}")
        return

    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with progress("singular bases", sum(svd_cost(stored.shape) for stored in missing)) as bar:
        for stored in missing:
            try:
                weight = stored.read(args.device)
                rank, precision = ranks[stored.name], args.precision
                kept[stored.name] = SpectralBasis.of(weight, rank, None, precision, args.randomized).to("cpu")
            except ValueError as error:
                raise ValueError(f"{stored.name}: {error}") from error
            bar.update(svd_cost(stored.shape))
    if missing:
        save_bases(args.out, kept, {"randomized": str(args.randomized)})
    print(f"{len(missing)} decomposed in {time.perf_counter() - start:.1f} s")


def _rank(text: str) -> int | float:
    return int(text) if text.isdigit() else float(text)


def _fitting(
    path: str, matrices: list[Stored], ranks: dict[str, int | None], storage: torch.dtype
) -> dict[str, SpectralBasis]:
    """The bases in the file that are those of the weights as they are now."""
    if not Path(path).exists():
        return {}
    stored = load_bases(path)
    if not any(one.name in stored and stored[one.name].weight_shape == torch.Size(one.shape) for one in matrices):
        raise ValueError(f"--out: {path} holds the bases of another model; name another file, or remove it")
    fitting = {}
    for one in matrices:
        basis = stored.get(one.name)
        if basis is None or basis.head_dim is not None or basis.U.dtype != storage:
            continue
        same = basis.rank == (ranks[one.name] or min(one.shape[-2:]))
        if same and basis.fingerprint == fingerprint(one.read()):
            fitting[one.name] = basis
    return fitting


def _bytes(shape: tuple[int, ...], rank: int | None, storage: torch.dtype) -> int:
    k = rank or min(shape[-2:])
    return math.prod(shape[:-2]) * k * (sum(shape[-2:]) * storage.itemsize + 4)


def _seconds(missing: list[Stored], ranks: dict[str, int | None], args: argparse.Namespace) -> float:
    """One small matrix is decomposed, and its time taken up by the cost."""
    W = torch.randn(SAMPLE, SAMPLE, device=args.device)
    share = min(((ranks[one.name] or 1) / min(one.shape[-2:]) for one in missing), default=1)
    for _ in range(2):
        start = time.perf_counter()
        (randomized_svd(W, max(1, round(share * SAMPLE))) if args.randomized else svd(W)).S.cpu()
        taken = time.perf_counter() - start
    return taken * sum(svd_cost(one.shape) for one in missing) / svd_cost(W.shape)
