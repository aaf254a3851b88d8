"""`python -m bench.studies encoder | language | best-case`: the studies behind docs/evidence.md."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bench.docs import evidence
from bench.results import RESULTS
from bench.studies import best_case, encoder, frontier

COMMANDS = {
    "prepare": ("fill a folder with the model and the tasks", frontier.prepare),
    "tune": ("make the runs that the folder lacks of those that choose", partial(frontier.work, plan=frontier.tuning)),
    "fresh": ("make the planned runs that the folder lacks", partial(frontier.work, plan=frontier.planned)),
    "pack": ("keep the folder's runs in bench/results", partial(frontier.pack, results=RESULTS)),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Prepare a study, make its runs, or keep them."""
    parser = argparse.ArgumentParser(prog="python -m bench.studies", description="The studies behind docs/evidence.md.")
    studies = parser.add_subparsers(required=True, metavar="STUDY")
    for study in evidence.STUDIES:
        commands = studies.add_parser(study.name, help=study.about).add_subparsers(required=True, metavar="COMMAND")
        for name, (about, act) in COMMANDS.items():
            command = commands.add_parser(name, help=about)
            command.add_argument("--work", type=Path, required=True, metavar="DIR", help="of the model and the runs")
            command.set_defaults(act=act, study=study)
            if name == "prepare" and study is encoder.STUDY:
                command.add_argument("--data", type=Path, required=True, help="folder in the CL_Benchmark layout")
    alone = studies.add_parser(
        "best-case", help="GSR's rescaled diagonal on one linear weight, written to bench/results"
    )
    alone.set_defaults(act=best_case.run)
    options = vars(parser.parse_args(argv))
    given = [options.pop(name) for name in ("act", "study", "work") if name in options]
    given[0](*given[1:], **options)


if __name__ == "__main__":
    main()
