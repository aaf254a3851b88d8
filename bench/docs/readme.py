"""``python -m bench.docs.readme``: writes what README.md and docs/performance.md show of bench/results, and draws."""

import json
import re
from pathlib import Path

from gsr_kernels.continual.metrics import ResultMatrix
from gsr_kernels.continual.plots import draw_forgetting
from gsr_kernels.continual.report import verdict
from gsr_kernels.continual.results import Results

from .. import adapters, floors, sharded, targets
from ..results import FILE, read
from . import figures

README = Path(__file__).parents[2] / "README.md"
PERFORMANCE = README.parent / "docs" / "performance.md"
SHARDED = README.parent / "docs" / "sharded.md"
ADAPTERS = README.parent / "docs" / "adapters"
FIGURE = README.parent / "docs" / "images" / "forgetting.png"
DEMO = FILE.parent / "demo"


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
    return "\n".join([*lines, "", _machine(rows[0])])


def demo() -> Results:
    """What one run of ``make demo`` measured; its folder is copied to bench/results/demo."""
    measured = json.loads((DEMO / "results.json").read_text())
    matrices = measured["matrices"]
    return Results(
        measured["score"],
        {title: [ResultMatrix.from_json(json.dumps(each)) for each in of] for title, of in matrices.items()},
    )


def demo_conditions() -> str:
    """The caption of the figure."""
    config = json.loads((DEMO / "config.json").read_text())
    settings = config["settings"]
    matrices = demo().matrices
    said = verdict("GSR", matrices["GSR"], matrices["SeqFT"])
    return (
        f"*`make demo`: a byte-level decoder of {settings['model']['layers']} layers and width "
        f"{settings['model']['width']}, pretrained here, learns {len(config['tasks'])} tasks in turn; points of each "
        f"task's score lost since its best, mean of {settings['seeds']} seeds; AdamW at {settings['lr']:g} for both, "
        f"ρ = {settings['method']['rho']:g}; {config['seconds']:.0f} s on {config['threads']} cores, torch "
        f"{config['versions']['torch']}. {said.split('. Seed by seed')[0]}: "
        "[the whole table](bench/results/demo/table.txt), [the evidence](docs/evidence.md) on a pretrained encoder.*"
    )


def pictures() -> str:
    """Those that were drawn from a GPU's rows."""
    there = [name for name in figures.PICTURES if (figures.FOLDER / f"{name}.svg").exists()]
    drawn = there if any(row["driver"] for row in read()) else []
    return "\n\n".join(f"![{name}](images/{name}.svg)" for name in drawn) or "No GPU's rows, and no picture, yet."


def steps_on_cpu() -> str:
    """One optimizer step of each, side by side on a CPU."""
    rows = [row for row in read() if row["case"] == "optimizer_step" and not row["driver"] and row["p50_ms"]]
    if not rows:
        return "Not measured yet: `python -m bench --case optimizer_step` on a quiet machine."
    lines = ["| optimizer step | rank | threads | ms, median [p20, p80] | × AdamW |", "|---|---|--:|--:|--:|"]
    for row in rows:
        spread = f"{float(row['p50_ms']):.1f} [{float(row['p20_ms']):.1f}, {float(row['p80_ms']):.1f}]"
        lines.append(f"| {row['variant']} | {row['rank']} | {row['threads']} | {spread} | {float(row['ratio']):.1f} |")
    where = rows[-1]
    return "\n".join([*lines, "", f"{where['model']}, {where['shape']}, {where['dtype']}; {_machine(where)}"])


def _machine(row: dict[str, str]) -> str:
    return f"{row['device']}; torch {row['torch']}; {row['date']}, commit {row['commit']}."


def step_on_gpu() -> str:
    """The picture of the optimizer step, where it is a GPU's."""
    if not any(row["case"] == "optimizer_step" and row["driver"] for row in read()):
        return "No GPU has timed the kernels yet."
    return "![One optimizer step beside its floor and its peers](docs/images/step.png)"


TABLES = {
    README: {"cpu": cpu_table, "demo": demo_conditions, "gpu": step_on_gpu},
    PERFORMANCE: {
        "floors": floors.table,
        "targets": lambda: targets.table(read()),
        "pictures": pictures,
        "cpu_steps": steps_on_cpu,
    },
    SHARDED: {"sharded": sharded.table},
    ADAPTERS / "ps_lora.md": {"stability_cpu": adapters.stability},
    ADAPTERS / "compared.md": {"adapters": adapters.compared},
}


def filled(file: Path) -> str:
    """The text of a file with each table between its marks as the results say."""
    text = file.read_text()
    for name, table in TABLES[file].items():
        marked = re.compile(rf"(<!-- bench:{name} -->\n).*?(<!-- /bench:{name} -->)", re.DOTALL)
        text, count = marked.subn(lambda match, table=table: f"{match[1]}{table()}\n{match[2]}", text)
        if count != 1:
            raise ValueError(f"{file.name} must hold the marks bench:{name} once, found {count}")
    return text


if __name__ == "__main__":
    FIGURE.parent.mkdir(exist_ok=True)
    draw_forgetting(demo(), FIGURE)
    for file in TABLES:
        file.write_text(filled(file))
