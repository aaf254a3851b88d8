"""The costs of the method on this machine, case by case, beside its floor and its peers."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path

import torch
from tqdm import tqdm

from bench.cases import FIXED, OF_A_MODEL, SECONDS
from bench.models import CONFIGURATIONS, model
from bench.results import Table, conditions
from bench.run import ABSENT, DTYPES, Run, Setting
from bench.timing import H200, measured, rows_of
from gsr_kernels.cli.floors import Rates


def add_arguments(
    parser: argparse.ArgumentParser, out: Path = Path("gsr-bench.csv"), default: Iterable[str] = OF_A_MODEL
) -> None:
    """Add the flags. Rows go to ``out``; the cases ``default`` run if no other is named."""
    add = parser.add_argument
    cases, models, dtypes = (", ".join(names) for names in (SECONDS, CONFIGURATIONS, DTYPES))

    def several(flag: str, metavar: str, said: str, **others: object) -> None:
        add(flag, nargs="+", metavar=metavar, help=said, **others)

    said = f"of {cases} (default: {' '.join(default)}, of these what runs here)"
    several("--case", "CASE", said, dest="cases", choices=SECONDS)
    parser.set_defaults(default=list(default))
    said = f"of {models}, or a model's folder or CONFIG.json (default: falcon3-1b on a GPU, else small)"
    several("--model", "MODEL", said)
    add("--layers", type=int, metavar="N", help="of each model its first N (default: all)")
    several("--rank", "K", "directions kept, or full (default)", default=["full"])
    several("--precision", "P", f"of the bases, of {dtypes} (default: fp16 on a GPU, else fp32)", choices=DTYPES)
    several("--gradient", "DTYPE", f"of the gradients, of {dtypes} (default: fp32)", choices=DTYPES, default=["fp32"])
    add("--seconds", type=float, default=3.0, metavar="S", help="spent on each comparison (default: %(default)s)")
    add("--tflops", type=float, metavar="R", help="16-bit products for the floors (default: measured; dry: 790)")
    add("--bandwidth", type=float, metavar="B", help="of memory in GB/s for the floors (default: measured; dry: 4300)")
    add("--out", type=Path, default=out, metavar="FILE", help="the CSV that rows are added to (default: %(default)s)")
    add("--dry-run", action="store_true", help="FLOP, bytes and floor of every row, from shapes alone")


def run(args: argparse.Namespace) -> None:
    """Run the cases one after another. Rows are printed and written as they come.

    Raises ValueError for a rank or rate that is not positive and what ``models.model`` refuses, SystemExit where a case
    failed.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    if not args.out.parent.is_dir():
        raise FileNotFoundError(f"--out: no folder {args.out.parent} to write {args.out.name} to")
    settings = list(_settings(args, on_gpu or args.dry_run))
    ceilings = H200 if args.dry_run else measured(device)
    rates = _scaled(ceilings, args.tflops, args.bandwidth)
    table, where, failed = Table(args.out), {} if args.dry_run else conditions(), 0
    if not args.dry_run:
        table.add({"case": "ceilings", **row, **where} for row in rows_of(ceilings))
    other = "_cpu" if on_gpu else "_gpu"
    chosen = args.cases or [case for case in args.default if args.dry_run or not case.endswith(other)]
    if args.dry_run:
        print(f"floors at {_described(rates)}; nothing is measured")
    for case in tqdm(chosen, "cases", disable=args.dry_run or None):
        print(f"\n{case}{f' (planned: {SECONDS[case]} s on an H200)' if SECONDS[case] else ''}")
        for setting in settings[: 1 if case in FIXED else None]:
            for row in _rows(case, Run(setting, rates, device, args.dry_run, args.seconds)):
                failed += not row.get("failed", ABSENT).startswith(ABSENT)
                tqdm.write(line(row), file=sys.stdout)
                if not args.dry_run:
                    # read while the case waits with the threads that it has set
                    threads = {} if on_gpu else {"threads": torch.get_num_threads()}
                    table.add([{"case": case, **threads, **row, **where}])
    if not args.dry_run:
        print(f"\nfloors at {_described(rates)}; rows are in {args.out}")
    if failed:
        raise SystemExit(f"{failed} of the rows above failed")


def line(row: dict) -> str:
    """Return a row as it is printed."""
    shown = ("model", "shape", "dtype", "rank", "out_of_span", "tokens", "threads", "layout", "spectrum")
    of = [row["variant"], *(str(row[name]) for name in shown if row.get(name))]
    said = [f"{row['flop'] / 1e12:.4g} TFLOP, {row['bytes'] / 1e9:.4g} GB"] if row.get("flop") else []
    said += [f"bases {row['formula_mib']} MiB by their formula"] if row.get("formula_mib") else []
    said += [f"floor {row['floor_ms']:.4g} ms"] if row.get("floor_ms") else []
    if row.get("p50_ms"):
        spread = f" [{row['p20_ms']:.4g}, {row['p80_ms']:.4g}]" if row.get("p20_ms") else ""
        said = [f"{row['p50_ms']:.4g} ms{spread} {row.get('launch', '')}".rstrip(), *said[1:]]
    said += [f"{row['ratio']:.3g} x {row['ratio_to']}"] if row.get("ratio") else []
    said += [f"{row['extra_mib']} MiB at the peak"] if "extra_mib" in row else []
    said += [row["verdict"]] if row.get("verdict") else []
    if reason := row.get("failed"):
        said.append(reason if reason.startswith(ABSENT) else f"FAILED: {reason}")
    return f"  {', '.join(of)}: {' | '.join(said)}"


def _settings(args: argparse.Namespace, large: bool) -> Iterator[Setting]:
    if not args.seconds >= 0:
        raise ValueError(f"--seconds must not be negative, got {args.seconds}")
    models = [model(name, args.layers) for name in args.model or ["falcon3-1b" if large else "small"]]
    ranks = [None if rank == "full" else _positive("--rank", rank) for rank in args.rank]
    precisions = args.precision or ["fp16" if large else "fp32"]
    for chosen in itertools.product(models, ranks, precisions, args.gradient):
        yield Setting(*chosen)


def _positive(name: str, value: str) -> int:
    if not value.isdigit() or int(value) < 1:
        raise ValueError(f"{name} must be full or a number of directions, at least 1, got {value!r}")
    return int(value)


def _scaled(rates: Rates, tflops: float | None, bandwidth: float | None) -> Rates:
    for name, value in (("--tflops", tflops), ("--bandwidth", bandwidth)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
    products = rates.products if tflops is None else {**rates.products, "16-bit": tflops, "tf32": tflops / 2}
    return Rates(products, rates.bandwidth if bandwidth is None else bandwidth / 1000)


def _described(rates: Rates) -> str:
    units = ", ".join(f"{unit} {rate:.3g}" for unit, rate in rates.products.items())
    return f"{units} TFLOP/s and {1000 * rates.bandwidth:.3g} GB/s"


def _rows(case: str, run: Run) -> Iterator[dict]:
    """Yield the rows of a case. One that breaks off says why, and the next begins."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    try:
        if case.endswith("_gpu") and not (run.on_gpu or run.dry):
            raise RuntimeError("it needs a CUDA device")
        yield from import_module(f"bench.cases.{case}").rows(run)
    except ModuleNotFoundError as reason:
        yield {"variant": case, "failed": f"{ABSENT}: {reason}"}
    except Exception as reason:
        yield {"variant": case, "failed": f"broken off, {type(reason).__name__}: {reason}".splitlines()[0][:300]}
    finally:
        torch.set_num_threads(threads)
