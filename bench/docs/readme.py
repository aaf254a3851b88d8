"""The tables of README.md, docs/performance.md, docs/sharded.md and docs/adapters, and the README's figure."""

from __future__ import annotations

import json
from pathlib import Path

from bench.docs import sharded
from bench.docs.pages import DOCS, IMAGES, ROOT, fill
from bench.docs.performance import floor_table, machine, pictures, steps_on_cpu, target_table
from bench.results import RESULTS, read
from gsr_kernels.continual.metrics import ResultMatrix
from gsr_kernels.continual.plots import draw_forgetting
from gsr_kernels.continual.report import BASELINE, FIGURES, over, verdict
from gsr_kernels.continual.results import Results

README = ROOT / "README.md"
DEMO, COMPARED = RESULTS / "demo", RESULTS / "adapters"


def cpu_table() -> str:
    """Return the transform against two bare products of its shapes and against the literal chain."""
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
    return "\n".join([*lines, "", machine(rows[0])])


def demo() -> Results:
    """Return what one run of ``make demo`` measured; its folder is copied to bench/results/demo."""
    measured = json.loads((DEMO / "results.json").read_text())
    matrices = measured["matrices"]
    return Results(
        measured["score"],
        {title: [ResultMatrix.from_json(json.dumps(each)) for each in of] for title, of in matrices.items()},
    )


def demo_conditions() -> str:
    """Return the caption of the figure."""
    config = json.loads((DEMO / "config.json").read_text())
    settings = config["settings"]
    matrices = demo().matrices
    said = verdict("GSR", matrices["GSR"], matrices["SeqFT"])
    return (
        f"*`make demo`: a Llama of {settings['demo']['layers']} layers and width {settings['demo']['width']}, with "
        f"bytes for tokens, pretrained here, learns {len(config['tasks'])} tasks in turn; points of each "
        f"task's score lost since its best, mean of {settings['seeds']} seeds; AdamW at {settings['lr']:g} for both, "
        f"ρ = {settings['rho']:g}; {config['seconds']:.0f} s on {config['threads']} cores, torch "
        f"{config['versions']['torch']}. {said.split('. Seed by seed')[0]}: "
        "[the whole table](bench/results/demo/table.txt), [the evidence](docs/evidence.md) on a pretrained encoder.*"
    )


def step_on_gpu() -> str:
    """Return the picture of the optimizer step, where it is a GPU's."""
    if not any(row["case"] == "optimizer_step" and row["driver"] for row in read()):
        return "No GPU has timed the kernels yet."
    return "![One optimizer step beside its floor and its peers](docs/images/step.png)"


def stability() -> str:
    """Return PS-LoRA's loss and gradients beside the dense form, on a CPU."""
    rows = [row for row in read() if row["case"] == "stability_cpu"]
    lines = [
        "| modules, float32, rank 8, one thread | from the factors | dense | dense, P kept | extra memory | dense |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for shape in dict.fromkeys(row["shape"] for row in rows):
        ours, *dense = [row for row in rows if row["shape"] == shape]
        times = [f"{float(ours['p50_ms']):.0f} ms", *(f"{float(row['ratio']):.2f} ×" for row in dense)]
        memory = [f"{float(row['extra_mib']):.1f} MiB" for row in (ours, dense[0])]
        lines.append(f"| {shape.replace(' x ', 'x').replace('x', ' × ')} | {' | '.join([*times, *memory])} |")
    where = rows[0]
    said = f"{where['device']}, one thread; torch {where['torch']}; {where['date']}, commit {where['commit']}."
    return "\n".join([*lines, "", said])


def compared() -> str:
    """Return what each method came to at the end of the demo's tasks, mean ± deviation over the seeds."""
    measured = json.loads((COMPARED / "results.json").read_text())["matrices"]
    matrices = {title: [ResultMatrix.from_json(json.dumps(one)) for one in each] for title, each in measured.items()}
    lines = [f"| | {' | '.join(FIGURES)} | against {BASELINE} |", "|---|--:|--:|--:|---|"]
    for title, each in matrices.items():
        cells = [over([value(matrix) for matrix in each]) for value, _ in FIGURES.values()]
        said = "" if title == BASELINE else verdict(title, each, matrices[BASELINE])
        sentence = said.split(". Seed by seed")[0].partition(": ")[2]
        lines.append(f"| {title} | {' | '.join(cells)} | {sentence} |")
    return "\n".join(lines)


TABLES = {
    README: {"cpu": cpu_table, "demo": demo_conditions, "gpu": step_on_gpu},
    DOCS / "performance.md": {
        "floors": floor_table,
        "targets": lambda: target_table(read()),
        "pictures": pictures,
        "cpu_steps": steps_on_cpu,
    },
    DOCS / "sharded.md": {"sharded": sharded.table},
    DOCS / "adapters" / "ps_lora.md": {"stability_cpu": stability},
    DOCS / "adapters" / "compared.md": {"adapters": compared},
}


def blocks(page: Path) -> dict[str, str]:
    """Return the tables of a page by their marks."""
    return {name: table() for name, table in TABLES[page].items()}


def write() -> None:
    """Draw the README's figure and write the tables of every page."""
    draw_forgetting(demo(), IMAGES / "forgetting.png")
    for page in TABLES:
        fill(page, blocks(page))
