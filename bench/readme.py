"""``python -m bench.readme``: writes the measured tables of README.md anew from bench/results/results.csv."""

import re
from pathlib import Path

from bench.results import read

README = Path(__file__).parent.parent / "README.md"


def cpu_table() -> str:
    """The transform against two bare products of its shapes and against the literal chain."""
    rows = [row for row in read() if row["case"] == "rescale_gradient_cpu"]
    lines = [
        "| shape, float32 | threads | two bare products | drop | keep | literal chain, drop | keep |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for shape, threads in dict.fromkeys((row["shape"], row["threads"]) for row in rows):
        chosen = [row for row in rows if (row["shape"], row["threads"]) == (shape, threads)]
        cells = {(row["variant"], row["out_of_span"]): row for row in chosen}
        bare = cells["two_products", ""]
        others = [cells[variant, mode] for variant in ("rescale_gradient", "reference") for mode in ("drop", "keep")]
        times = [f"{float(bare['p50_ms']):.1f} ms"] + [f"{float(row['ratio']):.2f} ×" for row in others]
        lines.append(f"| {shape.replace('x', ' × ')} | {threads} | {' | '.join(times)} |")
    where = rows[0]
    return "\n".join(
        [*lines, "", f"{where['device']}; torch {where['torch']}; {where['date']}, commit {where['commit']}."]
    )


TABLES = {"cpu": cpu_table}


def filled(text: str) -> str:
    """The text with each table between its marks as the results say."""
    for name, table in TABLES.items():
        marked = re.compile(rf"(<!-- bench:{name} -->\n).*?(<!-- /bench:{name} -->)", re.DOTALL)
        text, count = marked.subn(lambda match, table=table: f"{match[1]}{table()}\n{match[2]}", text)
        if count != 1:
            raise ValueError(f"README.md must hold the marks bench:{name} once, found {count}")
    return text


if __name__ == "__main__":
    README.write_text(filled(README.read_text()))
