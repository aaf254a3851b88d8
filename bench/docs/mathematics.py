"""Hook of mkdocs: formulas become pictures in the page, so that a reader's browser fetches and runs nothing."""

from __future__ import annotations

import io
import re
from html import escape, unescape
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.mathtext import MathTextParser

# what pymdownx.arithmatex leaves of $…$ and $$…$$
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[\[(](.*?)\\[\])]</\1>', re.S)
# in points: the em of a picture's font, and its margin; its letters look smaller than those of the page
EM, MARGIN, LARGER = 12, 1, 1.15


def on_page_content(html: str, **_: Any) -> str:
    """Return a page with every formula drawn."""
    return FORMULA.sub(lambda match: drawn(unescape(match[2]).strip(), match[1] == "div"), html)


def drawn(formula: str, displayed: bool) -> str:
    """Return a formula of TeX as SVG in the colour of the text around it.

    Raises ValueError where matplotlib's mathtext cannot parse it.
    """
    # one line: mathtext knows no environments
    text = f"${' '.join(formula.split())}$"
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": text, "mathtext.fontset": "stix"}):
        width, height, depth, *_ = MathTextParser("path").parse(text, 72, FontProperties(size=EM))
        wide, high = width + 2 * MARGIN, height + 2 * MARGIN
        figure = Figure(figsize=(wide / 72, high / 72))
        figure.text(MARGIN / wide, (depth + MARGIN) / high, text, fontsize=EM, color="#010203")
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue().strip()
    # several formulas share a page, so that no group keeps its id
    svg = re.sub(r'<metadata>.*?</metadata>| id="(figure|patch|text)_\d+"', "", svg[svg.index("<svg") :], flags=re.S)
    em = EM / LARGER
    style = f"height:{high / em:.3f}em;width:auto;vertical-align:{-(depth + MARGIN) / em:.3f}em"
    style += ";display:block;margin:1em auto;max-width:100%" if displayed else ""
    svg = svg.replace("#010203", "currentColor")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(formula)}" style="{style}" ', 1)
