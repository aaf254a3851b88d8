"""``python -m bench docs prose``: words a sentence and semicolons of README, docs, public docstrings and ``--help``."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import gsr_kernels
from bench.docs.pages import DOCS, ROOT
from gsr_kernels.__main__ import COMMANDS

README = ROOT / "README.md"
# of a page, what is no prose: comments and blocks of code, then lines of code, tables, headings and formulas
BLOCKS = re.compile(r"<!--.*?-->|^ *(```+|\$\$).*?^ *\1$", re.S | re.M)
LINES = re.compile(r"^(    .*|\s*\|.*|#.*|!\[.*\]\(.*\)|:::.*)$", re.M)
# a span of code or of mathematics is one word, a link is its text
SPANS = re.compile(r"`[^`]+`|\$[^$\n]+\$")
LINKS = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
# a sentence ends at a stop before a space, at a blank line and where an item of a list begins
ENDS = re.compile(r"[.!?:][*)\"”_]*(?=\s)|\n\s*\n|\n\s*(?:[-*]|\d+\.) ")
WORD = re.compile(r"\S*\w\S*")
# the arguments of a docstring, indented
ARGUMENTS = re.compile(r"(?<=^Args:\n)(?: {4}.*\n|\n(?= {4}))+", re.M)


class Counts(NamedTuple):
    """Of some pages: their words, sentences and semicolons."""

    words: int
    sentences: int
    semicolons: int

    @property
    def a_sentence(self) -> float:
        """Return the words a sentence."""
        return self.words / max(1, self.sentences)

    @property
    def semicolons_in_100(self) -> float:
        """Return the semicolons in 100 words."""
        return 100 * self.semicolons / max(1, self.words)


def sentences(text: str) -> list[str]:
    """Return the sentences of a page's prose."""
    prose = LINES.sub("\n\n", BLOCKS.sub("\n\n", text))
    prose = LINKS.sub(r"\1", SPANS.sub("code", prose))
    return [each for each in ENDS.split(f"{prose}\n\n") if WORD.search(each)]


def count(pages: Iterable[Path]) -> Counts:
    """Count over several pages."""
    return count_text("\n\n".join(page.read_text(encoding="utf-8") for page in pages))


def count_text(text: str) -> Counts:
    """Count in the text of a page."""
    found = sentences(text)
    return Counts(sum(len(WORD.findall(each)) for each in found), len(found), sum(each.count(";") for each in found))


def docstrings() -> Iterator[str]:
    """Yield the docstrings of the public names and of what is public in their classes."""
    for name in gsr_kernels.__all__:
        made = getattr(gsr_kernels, name)
        own = [one for key, one in vars(made).items() if key[0] != "_"] if inspect.isclass(made) else []
        for text in [one.__doc__ for one in [made, *own] if inspect.isroutine(one) or one is made]:
            said = inspect.cleandoc(text or "").replace("``", "`") + "\n"
            # an argument is a paragraph
            yield ARGUMENTS.sub(lambda found: re.sub(r"^ {4}(?=\S)", "\n", found[0], flags=re.M), said)


def helps() -> Iterator[str]:
    """Yield the help of every command and flag."""
    for name, about in COMMANDS.items():
        parser = argparse.ArgumentParser()
        import_module(f"gsr_kernels.cli.{name.replace(' ', '_')}").add_arguments(parser)
        yield from (about, *(action.help or "" for action in parser._actions))


def write() -> None:
    """Print the counts of each page, of the README, of all docs, of the docstrings of public names and of the help."""
    pages = sorted(DOCS.rglob("*.md"))
    counted = {str(page.relative_to(ROOT)): count([page]) for page in [README, *pages]} | {"docs": count(pages)}
    counted |= {"docstrings": count_text("\n\n".join(docstrings())), "help": count_text("\n\n".join(helps()))}
    for name, found in counted.items():
        print(
            f"{found.a_sentence:5.1f} words a sentence {found.semicolons_in_100:4.1f} ; in 100  {found.words:5} {name}"
        )
