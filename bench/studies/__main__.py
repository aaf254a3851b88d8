"""`python -m bench.studies encoder | language`: the studies behind docs/evidence.md."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from bench.studies import encoder_rows, encoder_runs, language_model, language_runs
from bench.studies.encoder_methods import COMPARED, FIRST


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.studies", description="The studies behind docs/evidence.md.")
    studies = parser.add_subparsers(required=True, metavar="STUDY")
    encoder = studies.add_parser("encoder", help="tune a pretrained sentence encoder on classification tasks")
    _add_encoder(encoder.add_subparsers(required=True, metavar="COMMAND"))
    language = studies.add_parser("language", help="pretrain a language model, tune it on tasks of writing")
    _add_language(language.add_subparsers(required=True, metavar="COMMAND"))
    options = parser.parse_args(argv)
    options.act(options)


def _add_encoder(commands: argparse._SubParsersAction) -> None:
    data = argparse.ArgumentParser(add_help=False)
    data.add_argument("--data", type=Path, required=True, help="folder in the CL_Benchmark layout")
    workers = argparse.ArgumentParser(add_help=False, parents=[data])
    workers.add_argument("--workers", type=int, default=2, help="processes of one thread")
    sample = commands.add_parser("sample", parents=[data], help="draw rows.json anew from the data")
    sample.set_defaults(act=lambda options: encoder_rows.write(options.data))
    gate = commands.add_parser("gate", parents=[workers], help="tune on each task alone, once")
    gate.set_defaults(act=lambda options: encoder_runs.work(options.data, encoder_runs.gate, options.workers))
    run = commands.add_parser("run", parents=[workers], help="run what the results lack")
    run.add_argument(
        "--methods", nargs="+", choices=COMPARED, default=FIRST, metavar="NAME", help=f"of {', '.join(COMPARED)}"
    )
    run.set_defaults(
        act=lambda options: encoder_runs.work(
            options.data, lambda records: encoder_runs.comparison(records, options.methods), options.workers
        )
    )


def _add_language(commands: argparse._SubParsersAction) -> None:
    sizes = language_model.SIZES
    work = argparse.ArgumentParser(add_help=False)
    work.add_argument("--work", type=Path, required=True, metavar="DIR", help="of the model, the tasks and the runs")
    results = argparse.ArgumentParser(add_help=False, parents=[work])
    results.add_argument("--results", type=Path, default=language_runs.RESULTS, metavar="DIR", help="one file a run")
    prepare = commands.add_parser("prepare", parents=[work], help="gather text, pretrain the model, write the tasks")
    prepare.add_argument("--size", choices=sizes, default="small", help="of the model")
    prepare.set_defaults(act=lambda options: language_model.prepare(options.work, sizes[options.size]))
    plans = {
        "gate": ("tune on each task alone, once", language_runs.gate),
        "run": ("run what the results lack", language_runs.comparison),
    }
    for name, (about, plan) in plans.items():
        command = commands.add_parser(name, parents=[results], help=about)
        command.set_defaults(act=lambda options, plan=plan: language_runs.work(options.work, plan, options.results))


if __name__ == "__main__":
    main()
