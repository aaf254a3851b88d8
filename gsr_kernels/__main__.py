"""``gsr-kernels COMMAND``, or ``python -m gsr_kernels COMMAND``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

import gsr_kernels
from gsr_kernels.messages import install

# a command is a module of cli with add_arguments(parser) and run(args), imported when it is called; one of two words
# has a "_" between them there
COMMANDS = {
    "bases": "the singular bases of a model, from its safetensors, ahead of training",
    "inspect": "spectra, effective ranks and condition numbers of a model's weights",
    "continual": "learn tasks one after another and see what is forgotten",
    "continual analyse": "pictures of what the tasks of such a run did to the weights",
    "continual compare": "figures of several such runs, and their differences",
    "continual prepare": "the tasks of a recipe, from local copies of published files",
    "continual methods": "the methods of such a run, their settings, defaults and sources",
    "estimate": "what the method costs on a model, from its config.json",
    "bench": "time on this machine, beside the floor and what one might use instead",
    "tune": "check and time the ways to compute a step on this GPU",
    "info": "versions, the GPU, what was built, and which backend computes each operator",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return 0, or 2 after bad input, which one line on stderr explains."""
    argv = [*(sys.argv[1:] if argv is None else argv)]
    words = [" ".join(argv[:2])] if " ".join(argv[:2]) in COMMANDS else argv[:1]
    parser = argparse.ArgumentParser(prog="gsr-kernels", description=gsr_kernels.__doc__)
    parser.add_argument("--version", action="version", version=f"%(prog)s {gsr_kernels.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, about in COMMANDS.items():
        command = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
        if words == [name]:
            try:
                chosen = import_module(f"gsr_kernels.cli.{name.replace(' ', '_')}")
            except ModuleNotFoundError as error:
                package = str(error.name).partition(".")[0]
                print(f"{parser.prog}: error: {name} needs the package {package}: {install()}", file=sys.stderr)
                return 2
            chosen.add_arguments(command)
            command.set_defaults(run=chosen.run, arguments=argv)
    args = parser.parse_args([*words, *argv[len(" ".join(words).split()) :]])
    try:
        args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # who reads, as head, has seen enough: what is left goes nowhere, at exit too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
