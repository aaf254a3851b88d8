"""``python -m bench.gpu [PART …]``: test and measure all on this GPU; ``python -m bench.gpu COMMAND``: see below.

Parts run one after another. The exit status is 1 if one failed or was left out. Where there is no .git the variable
BENCH_COMMIT says which commit the rows are of.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch

from bench.gpu import plan, session

# a command is a module with main(argv), imported when it is called
COMMANDS = {
    "warm": "compile every Triton kernel for this GPU into Triton's cache",
    "aot": "compile every Triton kernel without a GPU",
    "sass": "count instructions in the machine code of the step's kernels, without a GPU",
    "nvcc": "compile every kernel of csrc without a GPU",
    "candidates": "build csrc/candidates",
    "sanitize": "small problems for compute-sanitizer",
    "stand-in": "run a module of Python as if this machine had a GPU",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, or the parts of a session."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in COMMANDS:
        return import_module(f"bench.gpu.{argv[0].replace('-', '_')}").main(argv[1:])
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu",
        description=__doc__,
        epilog="\n".join(["commands:", *(f"  {name:12}{about}" for name, about in COMMANDS.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    named = f"by default {', '.join(plan.PARTS)}; by name also {', '.join(plan.OTHERS)}"
    parser.add_argument("parts", nargs="*", metavar="PART", help=named)
    parser.add_argument("--seconds", type=float, default=570, help="for all of it (default: %(default)s)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/gpu"),
        metavar="FOLDER",
        help="for the rows and the log (default: runs/gpu)",
    )
    parser.add_argument("--rehearse", action="store_true", help="the same on a CPU: every part small, on a stand-in")
    parser.add_argument("--dry-run", action="store_true", help="print the plan")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.parts) - set(plan.ALL):
        parser.error(f"no part {', '.join(sorted(unknown))}; there is {', '.join(plan.ALL)}")
    chosen = {name: plan.ALL[name] for name in arguments.parts or plan.PARTS}
    if arguments.dry_run:
        for name, part in chosen.items():
            print(f"{name:18}{part.seconds:4} s  {part.worth:40}{' '.join(part.command)}")
        print(f"in all {sum(part.seconds for part in chosen.values())} s")
        return 0
    if not (arguments.rehearse or torch.cuda.is_available()):
        parser.error("this machine has no CUDA GPU; --dry-run prints the plan, --rehearse runs it on a stand-in")
    return 0 if session.run(chosen, arguments.seconds, arguments.out, arguments.rehearse) else 1


if __name__ == "__main__":
    # so that a session ends the part that runs
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    sys.exit(main())
