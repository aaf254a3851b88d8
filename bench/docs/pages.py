"""``python -m bench docs [NAME …]``: write anew what the documentation shows of the results."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TypeVar

from gsr_kernels.io.atomic import replacing

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
IMAGES = DOCS / "images"
# a writer is a module with write(), imported when it is called: one needs matplotlib, another scipy
WRITERS = {
    "readme": "the tables of README.md, docs/performance.md and docs/adapters",
    "figures": "the README's picture of the last GPU's steps",
    "svd": "the tables and the figure of decompositions in docs/performance.md",
    "evidence": "the tables and figures of docs/evidence.md",
    "tutorial": "docs/tutorial.md, run anew",
    "gallery": "the pictures of docs/gallery.md",
    "prose": "nothing: it prints the words a sentence and the semicolons of each page",
}
# of bench/results
Row = dict[str, str]
Rows = Sequence[Row]
Each = TypeVar("Each")


def main(argv: Sequence[str]) -> None:
    """Run the writers that are named."""
    parser = argparse.ArgumentParser(prog="python -m bench docs", description="Write anew what the docs show.")
    said = "; ".join(f"{name}: {what}" for name, what in WRITERS.items())
    parser.add_argument("names", nargs="+", choices=WRITERS, metavar="NAME", help=said)
    for name in parser.parse_args(argv).names:
        import_module(f"bench.docs.{name}").write()


def filled(text: str, blocks: Mapping[str, str]) -> str:
    """Return the text with each block between its marks ``<!-- bench:NAME -->`` and ``<!-- /bench:NAME -->``.

    Raises ValueError where the marks of a block are not there once.
    """
    for name, block in blocks.items():
        start, end = (re.escape(f"<!-- {mark}bench:{name} -->") for mark in ("", "/"))
        marked = re.compile(rf"({start}\n).*?({end})", re.DOTALL)
        text, count = marked.subn(lambda match, block=block: f"{match[1]}{block}\n{match[2]}", text)
        if count != 1:
            raise ValueError(f"the page must hold the marks bench:{name} once, found {count}")
    return text


def fill(page: Path, blocks: Mapping[str, str]) -> None:
    """Write the blocks between their marks in a page."""
    text = filled(page.read_text(encoding="utf-8"), blocks)
    with replacing(page) as partial:
        partial.write_text(text, encoding="utf-8")


def table(header: Sequence[object], rows: Iterable[Sequence[object]], align: str = "") -> str:
    """Return a Markdown table; ``align`` has an "r" for each column of numbers to the right."""
    marks = ["--:" if side == "r" else "---" for side in align.ljust(len(header))]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in (header, marks, *rows))


def grouped(rows: Iterable[Row], *columns: str) -> dict[tuple[str, ...], list[Row]]:
    """Return the rows by what they have in these columns."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[column] for column in columns), []).append(row)
    return found


def last_run(rows: Rows) -> Rows:
    """Return the rows of the device and the commit of the last one."""
    return list(grouped(rows, "device", "commit").values())[-1] if rows else []


def pivot(
    rows: Iterable[Each],
    line: Callable[[Each], tuple[str, ...]],
    column: Callable[[Each], str],
    cell: Callable[[Each], str],
) -> tuple[list[str], list[list[str]]]:
    """Return the columns and the lines of a table, where each row fills one cell; a line begins with its own names."""
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        lines.setdefault(line(row), {})[column(row)] = cell(row)
    columns = list(dict.fromkeys(name for cells in lines.values() for name in cells))
    return columns, [[*names, *(cells.get(name, "") for name in columns)] for names, cells in lines.items()]


def measured(rows: Iterable[Row]) -> str:
    """Return where and when rows were measured."""
    said = []
    for (device, torch, date, commit), of in grouped(rows, "device", "torch", "date", "commit").items():
        threads = ", one thread" if all(row["threads"] == "1" for row in of) else ""
        said.append(f"{device}{threads}, torch {torch}, {date}, commit {commit}")
    return "; ".join(said)
