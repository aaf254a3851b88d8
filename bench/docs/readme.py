"""The tables of README.md, docs/performance.md and docs/adapters, and the figures of the first pages."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import quote

from bench.docs.figures import RATIOS, draw_ratios
from bench.docs.pages import DOCS, IMAGES, ROOT, Rows, fill, grouped, last_run, measured, table
from bench.docs.performance import floor_table, fp8_costs, fp8_errors, gpu_table, steps_on_cpu, target_table
from bench.docs.status import status
from bench.results import RESULTS, TESTS, read
from gsr_kernels import __version__
from gsr_kernels.continual.differences import over
from gsr_kernels.continual.figures import JUDGED, measure, summary
from gsr_kernels.continual.folder import read_results
from gsr_kernels.continual.metrics import Results
from gsr_kernels.continual.plots import draw_forgetting

README = ROOT / "README.md"
DEMO, COMPARED = RESULTS / "demo", RESULTS / "adapters"


def badges() -> str:
    """Return what pyproject.toml says of version, Python, torch and licence, as badges."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    facts = {
        "version": __version__,
        "Python": re.findall(r'requires-python = "(.+?)"', project)[0],
        "PyTorch": re.findall(r'"torch(>=.+?)"', project)[0],
        "licence": re.findall(r'license = "(.+?)"', project)[0],
    }
    shown = []
    for name, fact in facts.items():
        said = fact.replace(">=", "≥ ")
        image = quote(f"{name}-{said.replace('-', '--')}-blue")
        shown.append(f"![{name} {said}](https://img.shields.io/badge/{image})")
    return "\n".join(shown)


def transform_rows() -> Rows:
    """Return the last run of the transform on a CPU."""
    return last_run([row for row in read() if row["case"] == "rescale_gradient_cpu"])


def ratios() -> str:
    """Return the picture of the transform beside the literal chain, with its conditions."""
    said = "*One gradient on a CPU, float32, full rank, ρ = 0.5, the part outside the basis dropped, medians of one run"
    return f"![Time of GSR beside the paper's form](docs/images/ratios.png)\n\n{said}: {measured(transform_rows())}.*"


def cpu_table() -> str:
    """Return the transform against two bare products of its shapes and against the literal chain."""
    rows = transform_rows()
    lines = []
    for (shape, threads), of in grouped(rows, "shape", "threads").items():
        cells = {(row["variant"], row["out_of_span"]): row for row in of}
        bare = cells["two_products", ""]
        others = [cells[variant, mode] for variant in ("rescale_gradient", "reference") for mode in ("drop", "keep")]
        times = [f"{float(bare['p50_ms']):.1f} ms"] + [f"{float(row['ratio']):.2f} ×" for row in others]
        lines.append([shape.replace("x", " × "), threads, *times])
    header = ["shape, float32", "threads", "two bare products", "drop", "keep", "literal chain, drop", "keep"]
    return f"{table(header, lines, 'lrrrrrr')}\n\n{measured(rows)}."


def demo_conditions() -> str:
    """Return the caption of the figure."""
    config = json.loads((DEMO / "config.json").read_text())
    settings, demo = config["settings"], config["settings"]["demo"]
    rates = ", ".join(f"{title} {each['lr']:g}" for title, each in config["methods"].items())
    return (
        f"*A Llama of {demo['layers']} layers and width {demo['width']}, with bytes for tokens, is pretrained and then "
        f"learns {len(config['tasks'])} tasks in turn, {settings['steps']} steps each. Each number is the points of "
        f"its score that a task has lost, a mean of {settings['seeds']} seeds. AP is the mean score at the end, "
        "learned that on a task right after it. Lost is F.Ra, the mean of the last row. SeqFT is plain fine-tuning. "
        "LwF-own is what [the evidence](evidence.md) recommends for a model that writes. AdamW at the rate of each "
        f"with the highest AP on a seed of its own: {rates}. ρ = {settings['rho']:g}, on a CPU, "
        f"torch {config['versions']['torch']}. {_gains(read_results(DEMO)[0])}. Unclear: the 95 % interval holds zero. "
        "The whole table is in `bench/results/demo/table.txt`.*"
    )


def _gains(found: Results) -> str:
    """Return by how much each method is better than the baseline, a sentence a method."""
    sentences = []
    for title, gained in summary(found)["gains"].items():
        each = [f"{name} {gained[name]['mean']:+.1f} ({gained[name]['verdict']})" for name in JUDGED]
        sentences.append(f"{title} against {found.baseline}, + is better: {', '.join(each)}")
    return ". ".join(sentences)


def step_on_gpu() -> str:
    """Return the picture of the optimizer step, where it is a GPU's."""
    if not any(row["case"] == "optimizer_step" and row["driver"] for row in read()):
        return "No GPU has timed the kernels yet."
    return "![One optimizer step beside its floor and its peers](images/step.png)"


def stability() -> str:
    """Return PS-LoRA's loss and gradients beside the dense form, on a CPU."""
    rows = [row for row in read() if row["case"] == "stability_cpu"]
    lines = []
    for (shape,), (ours, *dense) in grouped(rows, "shape").items():
        times = [f"{float(ours['p50_ms']):.0f} ms", *(f"{float(row['ratio']):.2f} ×" for row in dense)]
        memory = [f"{float(row['extra_mib']):.1f} MiB" for row in (ours, dense[0])]
        lines.append([shape.replace(" x ", "x").replace("x", " × "), *times, *memory])
    what = "modules, float32, rank 8, one thread"
    header = [what, "from the factors", "dense", "dense, P kept", "extra memory", "dense"]
    return f"{table(header, lines, 'lrrrrr')}\n\n{measured(rows)}."


def compared() -> str:
    """Return what each method came to at the end of the demo's tasks, mean ± deviation over the seeds."""
    found, lines = read_results(COMPARED)[0], []
    gained = summary(found)["gains"]
    for title, each in measure(found)[0].items():
        cells = [over([of[name] for of in each]) for name in JUDGED]
        said = [f"{name} {gained[title][name]['verdict']}" for name in JUDGED if title in gained]
        lines.append([title, *cells, ", ".join(said)])
    return table(["", *JUDGED, f"against {found.baseline}"], lines, "lrrrl")


TABLES = {
    README: {"badges": badges, "status": lambda: status([*read(), *read(TESTS)]), "ratios": ratios},
    DOCS / "index.md": {"demo": demo_conditions},
    DOCS / "performance.md": {
        "cpu": cpu_table,
        "gpu": step_on_gpu,
        "floors": floor_table,
        "targets": lambda: target_table(read()),
        "gpus": lambda: gpu_table([*read(), *read(TESTS)]),
        "cpu_steps": steps_on_cpu,
        "fp8_costs": fp8_costs,
        "fp8_errors": fp8_errors,
    },
    DOCS / "adapters" / "ps_lora.md": {"stability_cpu": stability},
    DOCS / "adapters" / "compared.md": {"adapters": compared},
}


def blocks(page: Path) -> dict[str, str]:
    """Return the tables of a page by their marks."""
    return {name: table() for name, table in TABLES[page].items()}


def write() -> None:
    """Draw the figures of the first pages and write the tables of every page."""
    draw_ratios(transform_rows(), RATIOS)
    draw_forgetting(read_results(DEMO)[0], IMAGES / "forgetting.png")
    for page in TABLES:
        fill(page, blocks(page))
