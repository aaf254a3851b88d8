"""``python -m bench.gpu [PART …]``: test and measure all on this GPU; ``python -m bench.gpu COMMAND``: see below.

Parts run one after another. The exit status is 1 if one failed or was left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

import torch

import bench.__main__
from bench.gpu import session
from bench.gpu.session import Part

# a command is a module with main(argv), imported when it is called
COMMANDS = {
    "aot": "compile every Triton kernel without a GPU",
    "nvcc": "compile every kernel of csrc without a GPU",
    "candidates": "build csrc/candidates",
    "decisions": "decide from measured rows who computes each stage",
    "sanitize": "small problems for compute-sanitizer",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, or the parts of a session."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in COMMANDS:
        return import_module(f"bench.gpu.{argv[0]}").main(argv[1:])
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu",
        description=__doc__,
        epilog="\n".join(["commands:", *(f"  {name:12}{about}" for name, about in COMMANDS.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    others = ", ".join(name for name in session.ALL if name not in session.PARTS)
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"by default {', '.join(session.PARTS)}; by name also {others}"
    )
    parser.add_argument("--seconds", type=float, default=570, help="for all of it (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where bench/results/*.csv go after each part")
    parser.add_argument("--dry-run", action="store_true", help="the plan, and FLOP, bytes and floor of every row")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.parts) - set(session.ALL):
        parser.error(f"no part {', '.join(sorted(unknown))}; there is {', '.join(session.ALL)}")
    chosen = {name: session.ALL[name] for name in arguments.parts or session.PARTS}
    if arguments.dry_run:
        predict(chosen)
        return 0
    if not torch.cuda.is_available():
        parser.error("this machine has no CUDA GPU; --dry-run says what would be run")
    return 0 if session.run(chosen, arguments.seconds, arguments.out) else 1


def predict(parts: Mapping[str, Part]) -> None:
    """Print the plan, and what the cases say without a GPU."""
    for name, part in parts.items():
        print(f"{name}, planned: {part.seconds} s: {' '.join(part.words)}", flush=True)
    print(f"in all {sum(part.seconds for part in parts.values())} s", flush=True)
    for part in parts.values():
        if part.command[:2] == ["-m", "bench"]:
            bench.__main__.main([*part.command[2:], "--dry-run"])


if __name__ == "__main__":
    sys.exit(main())
