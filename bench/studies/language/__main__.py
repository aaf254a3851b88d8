"""`python -m bench.studies.language prepare | gate | run | report`."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import runs
from .prepare import SIZES, prepare


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.studies.language", description="The second part of the study behind docs/evidence.md."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    inside = argparse.ArgumentParser(add_help=False)
    inside.add_argument("--work", type=Path, required=True, metavar="DIR", help="of the model, the tasks and the runs")
    first = commands.add_parser(
        "prepare", parents=[inside], help="gather the text, pretrain the model, write the tasks"
    )
    first.add_argument("--size", choices=SIZES, default="small", help="of the model")
    of_results = argparse.ArgumentParser(add_help=False)
    of_results.add_argument("--results", type=Path, default=runs.RESULTS, metavar="DIR", help="one JSON file a run")
    commands.add_parser("gate", parents=[inside, of_results], help="tune on each task alone, once")
    commands.add_parser("run", parents=[inside, of_results], help="run what the results lack")
    commands.add_parser("report", parents=[of_results], help="tables and figure of docs/evidence.md from the results")
    options = parser.parse_args()
    if options.command == "prepare":
        prepare(options.work, SIZES[options.size])
    elif options.command == "gate":
        runs.work(options.work, runs.gate, options.results)
    elif options.command == "run":
        runs.work(options.work, runs.comparison, options.results)
    else:
        # matplotlib and scipy are needed here alone
        from . import report

        report.write(results=options.results)


if __name__ == "__main__":
    main()
