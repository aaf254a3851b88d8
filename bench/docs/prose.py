"""``python -m bench docs prose``: how long the sentences of README and docs are, and how many semicolons they have."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from bench.docs.pages import DOCS, ROOT

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


def write() -> None:
    """Print the counts of each page, of the README and of all docs."""
    pages = sorted(DOCS.rglob("*.md"))
    counted = {str(page.relative_to(ROOT)): count([page]) for page in [README, *pages]} | {"docs": count(pages)}
    for name, found in counted.items():
        print(
            f"{found.a_sentence:5.1f} words a sentence {found.semicolons_in_100:4.1f} ; in 100  {found.words:5} {name}"
        )
