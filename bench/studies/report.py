"""Tables and figures of docs/evidence.md, written between its markers; the prose around them is left alone."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from . import figures, runner, tables

PAGE = Path(__file__).parents[2] / "docs" / "evidence.md"
TABLES = {
    "gate": tables.gate,
    "outcome": tables.outcome,
    "AP against SeqFT": partial(tables.against_baseline, key="AP"),
    "BWT against SeqFT": partial(tables.against_baseline, key="BWT"),
    "learning accuracy against SeqFT": partial(tables.against_baseline, key="LA"),
    "against each other": tables.against_each_other,
    "rates": tables.rates,
    "matrices": tables.matrices,
}


def write(page: Path = PAGE, results: Path = runner.RESULTS) -> None:
    """Fill `<!-- NAME -->` … `<!-- end -->` in `page` and draw the figures into the folder of the page's name.

    Raises FileNotFoundError when there is no finished run, ValueError when the page lacks a marker.
    """
    records = runner.read(results)
    if not records:
        raise FileNotFoundError(f"{results} holds no finished run: python -m bench.studies run --data DIR")
    text = filled(page.read_text(encoding="utf-8"), {name: table(records) for name, table in TABLES.items()})
    folder = page.with_suffix("")
    figures.differences(tables.differences(records), folder / "differences.svg")
    figures.trade_off(tables.tried(records), folder / "trade_off.svg")
    replace(page, text)


def filled(text: str, blocks: dict[str, str]) -> str:
    """The page's text with each block between its markers. Raises ValueError for a marker that it lacks."""
    for name, block in blocks.items():
        opening, closing = f"<!-- {name} -->", "<!-- end -->"
        pattern = re.compile(f"{re.escape(opening)}.*?{re.escape(closing)}", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"the page lacks the markers {opening} … {closing}")
        between = f"{opening}\n\n{block}\n\n{closing}"
        text = pattern.sub(lambda _, between=between: between, text, count=1)
    return text


def replace(page: Path, text: str) -> None:
    """Puts the text in the page's place, whole or not at all."""
    part = page.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(page)
