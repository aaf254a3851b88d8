"""Help of a command with many flags: the common ones in groups, the others on demand."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any


class Formatter(argparse.HelpFormatter):
    """One line a flag, without its ``--no-…``."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=27)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        return super()._format_action_invocation(action).partition(", --no-")[0]


class _All(argparse.Action):
    """Prints every flag."""

    def __call__(self, parser: Any, *args: object) -> None:
        print(argparse.ArgumentParser.format_help(parser), end="")
        parser.exit()


def group_help(parser: argparse.ArgumentParser, usage: str, groups: Mapping[str, str]) -> None:
    """Have ``--help`` show the flags that are named in the groups, and ``--help-all`` all of them."""
    parser.add_argument("--help-all", action=_All, nargs=0, help="rarer flags too")
    parser.formatter_class = Formatter
    named = {text: action for action in parser._actions for text in action.option_strings or [str(action.metavar)]}

    def format_help() -> str:
        formatter = Formatter(parser.prog)
        formatter.add_usage(usage, [], [])
        for title, names in groups.items():
            formatter.start_section(title)
            formatter.add_arguments([named[name] for name in names.split()])
            formatter.end_section()
        return formatter.format_help()

    parser.format_help = format_help  # type: ignore[method-assign]
