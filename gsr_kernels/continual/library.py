"""Text that every Python installation carries, cut into rows of prompt and completion."""

from __future__ import annotations

import ast
import contextlib
import datetime
import io
import keyword
import sysconfig
import tokenize
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from email.utils import format_datetime
from functools import cache
from pathlib import Path

Row = tuple[bytes, bytes]

# of prompt and completion together, longer ones are left out; of one window of general text
ROW_BYTES = 64
# names that are spelled from the code point ("CJK UNIFIED IDEOGRAPH-4E00") teach hexadecimal and drown the others
SPELLED = ("CJK ", "HANGUL SYLLABLE", "TANGUT ", "NUSHU ", "KHITAN ", "EGYPTIAN HIEROGLYPH-")


@cache
def general() -> list[Row]:
    """Prose for pretraining: the language reference, where installed, and docstrings of one half of the library."""
    texts = [docstring for module in modules(half=0) for _, docstring in docstrings(module)]
    # some distributions leave the reference out; the docstrings alone are prose enough
    with contextlib.suppress(ImportError):
        from pydoc_data.topics import topics

        texts += [topics[name] for name in sorted(topics)]
    text = "\n\n".join(texts).encode()
    return [(b"", text[start : start + ROW_BYTES]) for start in range(0, len(text) - ROW_BYTES, ROW_BYTES)]


def docs() -> Iterator[tuple[str, str]]:
    """The name of a function or class -> the first line of its documentation."""
    for module in modules(half=1):
        for name, docstring in docstrings(module):
            yield name, docstring.splitlines()[0]


def code() -> Iterator[tuple[str, str]]:
    """A line of source code -> what its tokens are: ``x = f(1)`` -> ``name = name ( number )``."""
    kinds = {tokenize.NAME: "name", tokenize.NUMBER: "number", tokenize.STRING: "string", tokenize.COMMENT: "comment"}
    for module in modules(half=1):
        lines = source(module).splitlines()
        starts = {node.lineno for node in ast.walk(tree(module)) if isinstance(node, ast.stmt)}
        for line in (lines[start - 1].strip() for start in sorted(starts)):
            try:
                tokens = list(tokenize.generate_tokens(io.StringIO(line).readline))
            except (tokenize.TokenError, SyntaxError):
                # the statement goes on in the next line
                continue
            words = [
                "keyword" if keyword.iskeyword(token.string) else kinds.get(token.type, token.string)
                for token in tokens
                if token.string.strip()
            ]
            if len(words) > 1:
                yield line, " ".join(words)


def names() -> Iterator[tuple[str, str]]:
    """A character -> its Unicode name."""
    for point in range(0x80, 0x20000):
        name = unicodedata.name(chr(point), "")
        if name and not name.startswith(SPELLED):
            yield chr(point), name


def arithmetic() -> Iterator[tuple[str, str]]:
    """Two numbers -> the next two of the progression: ``98 101`` -> ``104 107``."""
    for first in range(1000):
        for step in range(1, 10):
            yield f"{first} {first + step}", f"{first + 2 * step} {first + 3 * step}"


def dates() -> Iterator[tuple[str, str]]:
    """A date in ISO 8601 -> as mail writes it: ``2024-03-05`` -> ``Tue, 05 Mar 2024``."""
    start = datetime.datetime(1990, 1, 1)
    for day in range(12000):
        moment = start + datetime.timedelta(days=day)
        yield moment.date().isoformat(), format_datetime(moment)[:16]


# in the order in which they are learned
SOURCES: dict[str, Callable[[], Iterator[tuple[str, str]]]] = {
    source.__name__: source for source in (docs, code, names, arithmetic, dates)
}


@cache
def rows(name: str) -> list[Row]:
    """All rows of one source that fit in ``ROW_BYTES``, in the order of the source."""
    encoded = ((prompt.encode(), completion.encode()) for prompt, completion in SOURCES[name]())
    return [row for row in encoded if row[1] and len(row[0]) + len(row[1]) <= ROW_BYTES]


def modules(half: int) -> list[Path]:
    """One half of the standard library's modules: what is pretrained on (0) and what tasks are made of (1)."""
    everything = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return [path for path in everything if zlib.crc32(path.stem.encode()) % 2 == half]


@cache
def source(module: Path) -> str:
    """The text of one module."""
    return module.read_text(encoding="utf-8", errors="replace")


@cache
def tree(module: Path) -> ast.Module:
    """The syntax tree of one module."""
    return ast.parse(source(module))


@cache
def docstrings(module: Path) -> list[tuple[str, str]]:
    """Every documented function and class of a module, by its qualified name."""
    found = []

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                docstring = ast.get_docstring(child)
                if docstring:
                    found.append((prefix + child.name, docstring))
                visit(child, f"{prefix}{child.name}.")

    visit(tree(module), "")
    return found
