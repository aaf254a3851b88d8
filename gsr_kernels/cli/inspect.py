"""``gsr-kernels inspect``: the spectra of a model's weights, as a table and as plots."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from gsr_kernels.cli import aligned, device_of, path_of
from gsr_kernels.io.bases_file import load_bases
from gsr_kernels.io.saved_model import stored_matrices
from gsr_kernels.messages import need
from gsr_kernels.reference import FLOOR


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", type=path_of, metavar="PATH", help="a bases file, or a directory with a model's *.safetensors"
    )
    parser.add_argument("--targets", metavar="REGEX", help="of a directory, as in attach(); default all-linear")
    parser.add_argument(
        "--plot", type=path_of, metavar="DIR", help="write spectra.png and heatmap.png there (needs matplotlib)"
    )
    parser.add_argument("--device", type=device_of, default="cpu", help="that decomposes (default %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Print a row a weight; of experts and heads, medians over them."""
    if args.plot:
        need("--plot", "matplotlib", "plot")
        if args.plot.exists() and not args.plot.is_dir():
            raise ValueError(f"--plot {args.plot} is no folder: name another")
    spectra = _spectra(args)
    rows: list[tuple[str, ...]] = [("weight", "rank", "σ max", "σ min", "condition", "effective", "1/σ share")]
    for name, S in spectra.items():
        medians = (value.median().item() for value in measures(S).values())
        figures = (f"{median:{form}}" for median, form in zip(medians, (".3g", ".3g", ".3g", ".1f", ".2%")))
        rows.append((name, str(S.shape[-1]), *figures))
    print("\n".join(aligned(rows)))
    print("effective: exp of the entropy of σ / Σσ; 1/σ share: what the smallest σ takes of a negative group of all")
    if args.plot:
        plot(spectra, args.plot)


def measures(S: Tensor) -> dict[str, Tensor]:
    """Return measures ``[..]`` of singular values ``S [.., k]``, descending.

    ``condition`` is σ_max / σ_min. ``effective_rank`` is exp(−Σ p log p) of p = σ / Σσ (Roy,
    Vetterli: The effective rank, EUSIPCO 2007). ``share`` is φ = (1/σ_min) / Σ 1/σ of the smallest active σ if every g
    were negative. Of a zero matrix the last two are 0.
    """
    S = S.double()
    largest, smallest = S.amax(-1), S.amin(-1)
    total = S.sum(-1)
    p = S / torch.where(total > 0, total, 1).unsqueeze(-1)
    active = FLOOR * largest.unsqueeze(-1) < S
    inverse = torch.where(active, 1 / torch.where(active, S, 1), 0)
    return {
        "largest": largest,
        "smallest": smallest,
        "condition": torch.where(smallest > 0, largest / smallest, torch.inf),
        "effective_rank": torch.special.entr(p).sum(-1).exp() * (total > 0),
        "share": torch.where(total > 0, inverse.amax(-1) / inverse.sum(-1), 0),
    }


def plot(spectra: dict[str, Tensor], directory: Path) -> None:
    """Draw ``spectra.png``, a curve a weight, and ``heatmap.png``, a row a weight, of log10 σ / σ_max by direction."""
    from gsr_kernels.plot import new_figure

    directory.mkdir(parents=True, exist_ok=True)
    curves = {}
    for name, S in spectra.items():
        flat = S.double().reshape(-1, S.shape[-1]).quantile(0.5, dim=0)
        curves[name] = (flat / flat[0].clamp_min(1e-300)).clamp_min(1e-8).log10()

    figure, axes = new_figure("index of the direction / rank", "log10 σ / σ max", (7, 4.5))
    for curve in curves.values():
        axes.plot(torch.linspace(0, 1, len(curve)).numpy(), curve.numpy(), linewidth=0.8, alpha=0.6)
    axes.set_title(f"{len(curves)} weights")
    figure.savefig(directory / "spectra.png")

    rows = torch.stack([curve[torch.linspace(0, len(curve) - 1, 200).round().long()] for curve in curves.values()])
    figure, axes = new_figure("index of the direction / rank", "", (9, 1.5 + 0.16 * len(curves)))
    image = axes.imshow(rows.numpy(), aspect="auto", extent=(0, 1, len(curves), 0), interpolation="nearest")
    axes.set_yticks([i + 0.5 for i in range(len(curves))], list(curves), fontsize=6)
    figure.colorbar(image, label="log10 σ / σ max")
    figure.savefig(directory / "heatmap.png")


def _spectra(args: argparse.Namespace) -> dict[str, Tensor]:
    if args.path.is_file():
        if args.targets is not None:
            raise ValueError("--targets is for a directory; a bases file is shown whole")
        bases = load_bases(args.path)
        if not bases:
            raise ValueError(f"{args.path} holds no bases")
        return {name: basis.S for name, basis in bases.items()}
    spectra = {}
    for stored in tqdm(stored_matrices(args.path, args.targets), "spectra", unit="weight", leave=False, disable=None):
        weight = stored.read(args.device)
        if not weight.isfinite().all():
            raise ValueError(f"{stored.name} holds NaN or Inf: it has no spectrum; restore it from a checkpoint")
        spectra[stored.name] = torch.linalg.svdvals(weight.to(torch.promote_types(weight.dtype, torch.float32))).cpu()
    return spectra
