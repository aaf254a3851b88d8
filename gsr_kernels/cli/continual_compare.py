"""``python -m gsr_kernels continual compare RUN RUN ...``: figures of several runs, and their differences."""

from __future__ import annotations

import argparse

from gsr_kernels.cli import path_of
from gsr_kernels.continual.compare import compare, draw, gather
from gsr_kernels.continual.folder import write_json, write_text
from gsr_kernels.messages import need


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    add = parser.add_argument
    add("runs", nargs="+", type=path_of, metavar="RUN", help="folders that continual --out wrote")
    add("--baseline", metavar="'RUN: METHOD'", help="with which the others are compared (default: the first run's)")
    add("--out", type=path_of, metavar="DIR", help="for compare.txt, compare.json and compare.png")


def run(args: argparse.Namespace) -> None:
    """Print the table and the differences; ValueError for a folder of no run."""
    entries, baseline = gather(args.runs)
    text, data = compare(entries, baseline if args.baseline is None else args.baseline)
    print(text, end="")
    if args.out is not None:
        need("--out", "matplotlib", "plot")
        write_text(args.out / "compare.txt", text)
        write_json(args.out / "compare.json", data, indent=1)
        draw(entries, args.out / "compare.png")
        print(f"\nsee {args.out}: compare.json, compare.png, compare.txt")
