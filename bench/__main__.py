"""``python -m bench``: the cases, measured into bench/results/results.csv; ``python -m bench docs``: see there."""

import argparse
import sys
from collections.abc import Sequence

from bench import runner
from bench.cases import SECONDS
from bench.docs import pages
from bench.results import FILE


def main(argv: Sequence[str] | None = None) -> None:
    """Run the cases, or write the docs anew."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["docs"]:
        pages.main(argv[1:])
        return
    said = "Measure the cases. `python -m bench docs` writes the docs anew."
    parser = argparse.ArgumentParser(prog="python -m bench", description=said)
    runner.add_arguments(parser, FILE, SECONDS)
    runner.run(parser.parse_args(argv))


if __name__ == "__main__":
    main()
