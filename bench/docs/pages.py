"""``python -m bench docs [NAME …]``: write anew what the documentation shows of the results."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

from gsr_kernels.io.atomic import replacing

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
IMAGES = DOCS / "images"
# a writer is a module with write(), imported when it is called: one needs matplotlib, another scipy
WRITERS = {
    "readme": "the tables of README.md, docs/performance.md, docs/sharded.md and docs/adapters",
    "figures": "the pictures of the last GPU's rows",
    "svd": "the tables and the figure of decompositions in docs/performance.md",
    "evidence": "the tables and figures of docs/evidence.md",
    "resharding": "the picture of docs/sharded.md, whose losses are measured anew",
}


def main(argv: Sequence[str]) -> None:
    """Run the writers that are named."""
    parser = argparse.ArgumentParser(prog="python -m bench docs", description="Write anew what the docs show.")
    said = "; ".join(f"{name}: {what}" for name, what in WRITERS.items())
    parser.add_argument("names", nargs="+", choices=WRITERS, metavar="NAME", help=said)
    parser.add_argument("--language", type=Path, metavar="RESULTS", help="of evidence: other runs of its second part")
    args = parser.parse_args(argv)
    for name in args.names:
        others = {"language": args.language} if name == "evidence" and args.language else {}
        import_module(f"bench.docs.{name}").write(**others)


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
