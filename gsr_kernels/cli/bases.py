"""``gsr-kernels bases``: the singular bases of a model ahead of time, from its shards, tensor by tensor."""

from __future__ import annotations

import argparse
import time
from contextlib import closing
from functools import partial

import torch
from torch import Tensor

from gsr_kernels.basis import STORAGE, SpectralBasis, fingerprint, split_shape, storage_dtype
from gsr_kernels.cli import device_of, path_of, rank_of
from gsr_kernels.io.bases_file import load_bases, writing_bases
from gsr_kernels.io.saved_model import Stored, stored_matrices
from gsr_kernels.linalg import randomized_svd, svd
from gsr_kernels.linalg.side_by_side import Job, decompose_all, progress, svd_cost
from gsr_kernels.options import resolve_rank

# the side of the matrix that a dry run decomposes for its estimate
SAMPLE = 384


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model_dir", type=path_of, metavar="MODEL_DIR", help="directory with the model's *.safetensors")
    parser.add_argument(
        "--out", type=path_of, required=True, metavar="FILE", help="bases file; only what does not fit is redone in it"
    )
    parser.add_argument(
        "--rank", type=rank_of, help="directions of each weight: a number, or a share below 1; default all"
    )
    parser.add_argument(
        "--targets", metavar="REGEX", help="names of weights, as attach(targets=) takes them; default all-linear"
    )
    parser.add_argument("--precision", choices=sorted(STORAGE), help="of U and Vh; default: that of --for")
    parser.add_argument(
        "--for",
        dest="trains_on",
        choices=("cuda", "cpu"),
        help="where the model will train: float16 is the default of a GPU, float32 of a CPU; default: --device",
    )
    parser.add_argument("--randomized", action="store_true", help="sketch instead of decomposing exactly; needs --rank")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=device_of, default=default, help="default %(default)s")
    parser.add_argument("--replace", action="store_true", help="write FILE anew, though it is of other weights")
    parser.add_argument("--dry-run", action="store_true", help="print bytes and time, write nothing")


def run(args: argparse.Namespace) -> None:
    """Decompose what the file does not hold yet and write it anew; a refusal changes nothing."""
    if args.out.is_dir():
        raise ValueError(f"--out {args.out} is a directory: name a file")
    if args.randomized and args.rank is None:
        raise ValueError("--randomized needs --rank: a whole basis is decomposed exactly")
    weights = stored_matrices(args.model_dir, args.targets)
    planned = _planned(weights, args)
    kept = _kept(args, planned)
    missing = [one for one in weights if one.name not in kept]
    size = sum(basis.nbytes for basis in (planned | kept).values())
    print(f"{len(weights)} weights, {len(weights) - len(missing)} of them in {args.out}; {size / 2**20:.1f} MiB")
    if args.dry_run:
        seconds = _seconds([planned[one.name] for one in missing], args)
        print(f"about {seconds:.1f} s to decompose {len(missing)} on {args.device}")
        return

    start = time.perf_counter()
    if missing:
        _write(args, planned, kept, missing)
    print(f"{len(missing)} decomposed in {time.perf_counter() - start:.1f} s")


def _write(
    args: argparse.Namespace, planned: dict[str, SpectralBasis], kept: dict[str, SpectralBasis], missing: list[Stored]
) -> None:
    """Write basis by basis into the file."""
    jobs = [_job(one, planned[one.name], args) for one in missing]
    costs = [svd_cost(job.shape) for job in jobs]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with writing_bases(args.out, planned | kept) as add, progress("singular bases", sum(costs)) as bar:
        with closing(decompose_all(jobs)) as found:
            for i, basis in found:
                add(missing[i].name, basis)
                bar.update(costs[i])
                # frees it before the next one is made
                del basis
        for name, basis in kept.items():
            add(name, basis)


def _job(stored: Stored, basis: SpectralBasis, args: argparse.Namespace) -> Job:
    def decompose(W: Tensor) -> SpectralBasis:
        try:
            return SpectralBasis.of(W, basis.rank, stored.heads, basis.precision, args.randomized)
        except ValueError as error:
            raise ValueError(f"{stored.name}: {error}") from error

    key = (stored.shape, stored.dtype, basis.rank) if len(basis.shape) == 2 else None
    sketch = basis.rank if basis.randomized else None
    read = partial(stored.read, args.device)
    return Job(basis.shape, torch.device(args.device), read, decompose, basis.S.dtype, sketch, key)


def _planned(weights: list[Stored], args: argparse.Namespace) -> dict[str, SpectralBasis]:
    """Return the shapes and dtypes of the bases to come, and how they will be found."""
    shapes = {one.name: split_shape(one.shape, one.heads) for one in weights}
    ranks = resolve_rank(args.rank, {name: shape[-2:] for name, (shape, _) in shapes.items()})
    planned = {}
    for one in weights:
        (*batch, d1, d2), head_dim = shapes[one.name]
        k = min(ranks[one.name] or d1, d1, d2)
        empty = partial(torch.empty, device="meta")
        wide = torch.float64 if one.dtype == torch.float64 else torch.float32
        storage = storage_dtype(args.precision, wide, torch.device(args.trains_on or args.device))
        U, Vh = (empty(*batch, *shape, dtype=storage) for shape in ((d1, k), (k, d2)))
        S = empty(*batch, k, dtype=wide)
        planned[one.name] = SpectralBasis(U, S, Vh, None, head_dim, args.randomized)
    return planned


def _kept(args: argparse.Namespace, planned: dict[str, SpectralBasis]) -> dict[str, SpectralBasis]:
    """Return the bases of the file that stay: those that are as planned, and those that were not asked for."""
    if not args.out.exists():
        return {}
    held = load_bases(args.out)
    if args.replace:
        return {}
    weights = [one for one in stored_matrices(args.model_dir, ".*") if one.name in held]
    same = {one.name for one in weights if held[one.name].fingerprint == fingerprint(one.read("cpu"))}
    if held and not same:
        raise ValueError(
            f"--out: {args.out} holds bases of another model, or all of its weights have changed since: "
            "name another file, or pass --replace"
        )
    split = [name for name in planned if name in held and held[name].head_dim != planned[name].head_dim]
    if split:
        raise ValueError(
            f"--out: {args.out} holds the bases of the heads of {split[0]}, which this command does not make: "
            "name another file, or pass --replace"
        )
    return {
        name: basis
        for name, basis in held.items()
        if name not in planned or (name in same and _settings(basis) == _settings(planned[name]))
    }


def _settings(basis: SpectralBasis) -> tuple[int, torch.dtype, bool]:
    return basis.rank, basis.U.dtype, basis.randomized


def _seconds(missing: list[SpectralBasis], args: argparse.Namespace) -> float:
    """Estimate the time from that of one small matrix, scaled by the cost."""
    W = torch.randn(SAMPLE, SAMPLE, device=args.device)
    share = min((basis.rank / min(basis.shape[-2:]) for basis in missing), default=1)
    for _ in range(2):
        start = time.perf_counter()
        (randomized_svd(W, max(1, round(share * SAMPLE))) if args.randomized else svd(W)).S.cpu()
        taken = time.perf_counter() - start
    return taken * sum(svd_cost(basis.shape) for basis in missing) / svd_cost(W.shape)
