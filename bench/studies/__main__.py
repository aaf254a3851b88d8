"""`python -m bench.studies sample | gate | run | report`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from . import runner, sampler
from .configurations import CONFIGURATIONS, FIRST


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.studies", description="The study behind docs/evidence.md.")
    commands = parser.add_subparsers(dest="command", required=True)
    with_data = argparse.ArgumentParser(add_help=False)
    with_data.add_argument("--data", type=Path, required=True, help="folder in the CL_Benchmark layout")
    commands.add_parser("sample", parents=[with_data], help="draw rows.json anew from the data")
    with_workers = argparse.ArgumentParser(add_help=False)
    with_workers.add_argument("--workers", type=int, default=2, help="processes of one thread")
    commands.add_parser("gate", parents=[with_data, with_workers], help="tune on each task alone, once")
    queue = commands.add_parser("run", parents=[with_data, with_workers], help="run what results/ lacks")
    compared = [name for name in CONFIGURATIONS if name != "perft"]
    queue.add_argument(
        "--methods", nargs="+", choices=compared, default=FIRST, metavar="NAME", help=", ".join(compared)
    )
    commands.add_parser("report", help="tables and figures of docs/evidence.md from results/")
    options = parser.parse_args()
    if options.command == "sample":
        sampler.MANIFEST.write_text(json.dumps(sampler.sample(options.data), indent=1) + "\n")
    elif options.command == "gate":
        runner.work(options.data, runner.gate, options.workers)
    elif options.command == "run":
        runner.work(options.data, lambda records: runner.comparison(records, options.methods), options.workers)
    else:
        # matplotlib and scipy are needed here alone
        from . import report

        report.write()


if __name__ == "__main__":
    main()
