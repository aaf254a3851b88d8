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
        raise FileNotFoundError(f"{results} holds no finished run: python -m bench.evidence run --data DIR")
    text = page.read_text(encoding="utf-8")
    for name, table in TABLES.items():
        text = _fill(text, name, table(records))
    folder = page.with_suffix("")
    figures.differences(records, folder / "differences.svg")
    figures.trade_off(records, folder / "trade_off.svg")
    part = page.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(page)


def _fill(text: str, name: str, block: str) -> str:
    opening, closing = f"<!-- {name} -->", "<!-- end -->"
    pattern = re.compile(f"{re.escape(opening)}.*?{re.escape(closing)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"the page lacks the markers {opening} … {closing}")
    return pattern.sub(lambda _: f"{opening}\n\n{block}\n\n{closing}", text, count=1)
