"""The final answer of a text: what stands in its last box, else its last number."""

from __future__ import annotations

import re
from fractions import Fraction

from gsr_kernels.continual.examples import Example

FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]+)\}\s*\{([^{}]+)\}")
# a minus behind a digit, a letter or a bracket takes away; 1,000 is one number, and 3/4 too
NUMBER = re.compile(
    r"(?:(?<![\w)\]}.])[-+])?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:(?<!\d)\.\d+|(?<=\d)(?:\.\d+)?(?:[eE][-+]?\d+)?)(?:/\d+)?"
)


def final_answer(row: Example, answer: str) -> float:
    """Return 1 where the final answers of both texts are equal, numbers as numbers, other texts by letters; else 0."""
    ours, right = _final(answer), _final(row.completion)
    return float(ours is not None and ours == right)


def _final(text: str) -> Fraction | str | None:
    boxed = _boxed(text)
    plain = FRACTION.sub(r"\1/\2", text if boxed is None else boxed)
    found = [match[0] for match in NUMBER.finditer(plain) if match[0]]
    if boxed is not None:
        # a box holds the answer alone: a number with signs around it, or a text
        whole = re.sub(r"\\[,!; ]|\\(?:text|mathrm)\{[^{}]*\}|\\?[$%]|\s|[{}]", "", plain)
        found = found if found and len(found) == 1 and re.sub(r"\s", "", found[0]) == whole else []
        if not found:
            return whole.casefold()
    try:
        return Fraction(found[-1].replace(",", "")) if found else None
    except (ValueError, ZeroDivisionError):
        return None


def _boxed(text: str) -> str | None:
    """Return what stands in the last ``\\boxed{…}``, whose braces may hold others."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 0, start + len("\\boxed")
    for place, sign in enumerate(text[begin:], begin):
        depth += (sign == "{") - (sign == "}")
        if not depth:
            return text[begin + 1 : place]
    return None
