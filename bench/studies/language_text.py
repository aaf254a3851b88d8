"""The text that the model is pretrained on, and whole pages held out of it, language by language."""

from __future__ import annotations

import gzip
import re
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gsr_kernels.continual import library

MANUALS = Path("/usr/share/man")
# pages whose names begin with the same word are one family: often one program makes them of one template
FAMILY_PAGES = 20
# one family in so many is kept apart, in all languages
APART = 3
# characters of a language
LEAST = 140_000
# a page that is kept apart has so many characters, and of its long lines at most this share in the training text
PAGE = (700, 5000)
LONG_LINE, KNOWN_LINES = 40, 0.2
# shorter lines are a word that many pages have
LINE = 10


@dataclass(frozen=True)
class Text:
    """The text learned and the text kept apart, by language; Python's source code and prose are two more."""

    training: dict[str, str]
    held_out: dict[str, list[str]]

    def described(self) -> dict[str, dict[str, int]]:
        """Return, by language, the characters learned, those and the pages kept apart, and the share told.

        Told are the characters kept apart in lines that stand in the training text.
        """
        known = {line for text in self.training.values() for line in _lines(text, LINE)}
        found = {}
        for language, learned in self.training.items():
            pages = self.held_out.get(language, [])
            told = sum(len(line) for line in _lines("\n".join(pages), LINE) if line in known)
            counts = {"held out": sum(map(len, pages)), "pages": len(pages), "told": told}
            found[language] = {"learned": len(learned), **counts}
        return found


def gather(quota: int, held_out: int, manuals: Path = MANUALS) -> Text:
    """Gather so many characters of each language at most, and about so many of whole pages kept apart.

    A language with fewer than LEAST is left out.
    """
    # of the library the half that no task is made of
    sources = map(library.source, library.modules(half=0))
    prose = b"".join(completion for _, completion in library.general()).decode(errors="replace")
    training = {"python": _joined(sources, quota), "prose": prose[:quota]}
    apart: dict[str, list[tuple[str, str]]] = {}
    for language, pages in sorted(_pages(manuals).items()):
        kept = [text for family, text in pages if zlib.crc32(family.encode()) % APART]
        text = _joined(kept, quota)
        if len(text) >= LEAST:
            training[language] = text
            apart[language] = [page for page in pages if zlib.crc32(page[0].encode()) % APART == 0]
    known = {line for text in training.values() for line in _lines(text, LONG_LINE)}
    return Text(training, {language: _choose(pages, held_out, known) for language, pages in apart.items()})


def plain(page: str) -> str:
    """Return the words of a manual page in roff."""
    lines = [re.sub(r"^\.[A-Za-z]+ ?", "", line) for line in page.splitlines() if not line.startswith(('.\\"', "'"))]
    text = re.sub(r"\\f\[\w*\]|\\f.|\\s[-+]?\d|\\[&|^:]|\\\(..|\\\[\w+\]", "", "\n".join(lines)).replace("\\-", "-")
    return re.sub(r"\n\s*\n+", "\n", text)


def _pages(manuals: Path) -> dict[str, list[tuple[str, str]]]:
    """Return family and words of every page, by language, in an order that has nothing to do with their names."""
    found: dict[str, list[tuple[str, str]]] = {}
    counts: Counter[tuple[str, str]] = Counter()
    for path in sorted(manuals.rglob("*.gz"), key=lambda path: (zlib.crc32(path.name.encode()), str(path))):
        first = path.relative_to(manuals).parts[0]
        language = "en" if first.startswith("man") else first.partition(".")[0]
        family = re.split(r"[^a-z]", path.name.lower().lstrip("._0123456789"))[0]
        counts[language, family] += 1
        if path.is_symlink() or counts[language, family] > FAMILY_PAGES:
            continue
        text = plain(gzip.decompress(path.read_bytes()).decode("utf-8", "replace"))
        # what is no UTF-8, and what only names another page
        if "\ufffd" not in text and len(text) > 200:
            found.setdefault(language, []).append((family, text))
    return found


def _choose(pages: Iterable[tuple[str, str]], wanted: int, known: set[str]) -> list[str]:
    """Return short pages, one a family, that the training text does not tell."""
    chosen: dict[str, str] = {}
    for family, text in sorted(pages, key=lambda page: len(page[1])):
        if sum(map(len, chosen.values())) >= wanted:
            break
        lines = _lines(text, LONG_LINE)
        told = sum(line in known for line in lines)
        if family not in chosen and PAGE[0] <= len(text) <= PAGE[1] and told <= KNOWN_LINES * len(lines):
            chosen[family] = text
    return list(chosen.values())


def _lines(text: str, least: int) -> list[str]:
    return [line.strip() for line in text.splitlines() if len(line.strip()) >= least]


def _joined(texts: Iterable[str], limit: int) -> str:
    """Join texts, each once, up to so many characters."""
    return "\n\n".join(dict.fromkeys(texts))[:limit]
