"""The tables of docs/performance.md: floors, targets and what the rows say of them, steps on a CPU."""

from __future__ import annotations

from collections.abc import Callable

from bench.cases import fp8_cpu
from bench.docs.pages import Rows, grouped, last_run, measured, pivot, table
from bench.models import model
from bench.optimizers import MUON, OSF, OURS, muon_work
from bench.results import read
from bench.timing import H200
from bench.transforms import literal_work
from gsr_kernels.cli.floors import STATES, Work, adamw, transform

FULL, FULL_HALF = ({"rank": "full", "dtype": dtype} for dtype in ("fp32 x fp16", "bf16 x fp16"))
LOW, LOW_HALF = ({"rank": "256", "dtype": dtype} for dtype in ("fp32 x fp16", "bf16 x fp16"))
AT_16K = {"tokens": "16384"}
# on the matrices of Falcon3-1B: what, how much, by a model of the machine code, and of which row
TARGETS = [
    ("transform in grouped Triton, bf16 gradients", "≤ 1.2 × the longer of cuBLAS's bare products and the bytes' time",
     "1.45 to 1.75", "transform", "GSR", FULL_HALF),
    ("the same around cuBLAS's products", "≤ 1.2 × as above", "1.2, 14.5 ms", "transform", "GSR around cuBLAS",
     FULL_HALF),
    ("literal form in its best order, fp32", "≥ 10 × the transform", "12.7", "transform", "literal fp32", FULL_HALF),
    ("the same in TF32", "≥ 2.5 × the transform", "2.3", "transform", "literal tf32", FULL_HALF),
    ("the same with bf16 operands", "≥ 1.5 × the transform", "1.1", "transform", "literal bf16", FULL_HALF),
    ("both products in torch", "≥ 1.1 × the transform", "–", "transform", "two products, torch", FULL_HALF),
    ("GSRAdamW, fp32 states", "≤ 0.85 × GSR and then AdamW; ≤ 1.35 × its floor", "22 to 28 ms, 1.7 to 2.1 × its floor",
     "optimizer_step", "GSRAdamW", FULL),
    ("GSRAdamW, rank 256, fp32 states", "≤ 1.4 × AdamW", "≥ 1.31 by bytes alone", "optimizer_step", "GSRAdamW", LOW),
    ("GSRAdamW, rank 256, 16-bit states", "≤ 1.4 × AdamW", "≥ 1.37 by bytes alone", "optimizer_step", "GSRAdamW",
     LOW_HALF),
    ("Muon, same weights", "≥ 5 × GSRAdamW", "2.4 to 3.0", "optimizer_step", "Muon", FULL),
    ("training step, 16k tokens", "≤ 1.04 × that with AdamW", "–", "training_step", "GSRAdamW", FULL_HALF | AT_16K),
    ("training step, 16k tokens, rank 256", "≤ 1.01 × that with AdamW", "–", "training_step", "GSRAdamW",
     LOW_HALF | AT_16K),
    ("memory beyond the bases", "≤ 256 + 64 MiB", "–", "memory", "GSRAdamW", FULL),
    ("host time of a step", "≤ 1 ms, or replayed as a graph", "–", "launch", "GSRAdamW, launched", FULL),
]  # fmt: skip
# the kernels for one weight, of d1, d2 and its full rank
Form = Callable[[int, int, int], list[Work]]


def target_table(rows: Rows) -> str:
    """Return every target with the verdict of its row, if a GPU has one; the last where several have."""
    on_gpu = [row for row in rows if row["driver"] and row["model"] == "falcon3-1b"]
    lines = []
    for what, target, predicted, case, variant, of in TARGETS:
        labels = {"case": case, "variant": variant, **of}
        found = [row for row in on_gpu if all(row[name] == value for name, value in labels.items())]
        said = (found[-1]["verdict"] or found[-1]["failed"]) if found else "not yet"
        lines.append([what, target, predicted, said])
    shown = table(["Falcon3-1B, full rank where no rank is given", "target", "predicted", "measured"], lines)
    return "\n\n".join([shown, *([measured(on_gpu)] if on_gpu else [])])


def gpu_table(rows: Rows) -> str:
    """Return what ran on which GPU."""
    found = grouped((row for row in rows if row["driver"]), "device", "driver", "torch", "triton", "date", "commit")
    lines = [[*of, ", ".join(dict.fromkeys(row.get("case") or "tests" for row in ran))] for of, ran in found.items()]
    return table(["GPU", "driver", "torch", "Triton", "date", "commit", "what ran"], lines) if lines else "None yet."


def floor_table() -> str:
    """Return the milliseconds of one optimizer step below which an H200 cannot go, form by form, and TFLOP of each."""
    models = {"Falcon3-1B": model("falcon3-1b"), "Llama-3-8B": model("llama3-8b")}
    header, lines = ["one optimizer step, ms (TFLOP)"], []
    for name, one in models.items():
        elements = sum(d1 * d2 for d1, d2 in one.matrices)
        header.append(f"{name}, {len(one.matrices)} matrices, {elements / 1e9:.2f} B")
    for title, form in FORMS.items():
        works = [[kernel for d1, d2 in one.matrices for kernel in form(d1, d2, min(d1, d2))] for one in models.values()]
        cells = [f"{H200.floor(work):.1f} ({sum(kernel.flop for kernel in work) / 1e12:.2f})" for work in works]
        lines.append([title, *cells])
    return table(header, lines, "lrr")


def _literal(size: int, unit: str) -> Form:
    return lambda d1, d2, k: literal_work(d1, d2, k, "drop", size, unit) + adamw(d1 * d2, 4, "fp32")


def _fused(out_of_span: str, gradient: int, states: str, rank: int | None = None) -> Form:
    return lambda d1, d2, k: transform(d1, d2, min(k, rank or k), out_of_span, 2, gradient, end=STATES[states])


FORMS: dict[str, Form] = {
    "literal form in its best order, fp32, then AdamW": _literal(4, "fp32"),
    "the same in TF32": _literal(4, "tf32"),
    "the same with bf16 operands": _literal(2, "16-bit"),
    "two products, then AdamW, fp32 gradient and states": (
        lambda d1, d2, k: transform(d1, d2, k, "drop", 2, 4) + adamw(d1 * d2, 4, "fp32")
    ),
    "two products, then AdamW, 16-bit gradient and states": (
        lambda d1, d2, k: transform(d1, d2, k, "drop", 2, 2) + adamw(d1 * d2, 2, "16-bit")
    ),
    "GSRAdamW, drop, fp32 gradient and states": _fused("drop", 4, "fp32"),
    "GSRAdamW, keep, fp32 gradient and states": _fused("keep", 4, "fp32"),
    "GSRAdamW, drop, 16-bit gradient, fp32 master": _fused("drop", 2, "fp32 master, 16-bit copy"),
    "GSRAdamW, drop, 16-bit gradient and states": _fused("drop", 2, "16-bit"),
    "GSRAdamW, rank 256, fp32 gradient and states": _fused("keep", 4, "fp32", 256),
    "GSRAdamW, rank 256, 16-bit gradient and states": _fused("keep", 2, "16-bit", 256),
    "AdamW alone, fp32 gradient and states": lambda d1, d2, k: adamw(d1 * d2, 4, "fp32"),
    "AdamW alone, 16-bit gradient and states": lambda d1, d2, k: adamw(d1 * d2, 2, "16-bit"),
    "products of Muon's five Newton–Schulz iterations": lambda d1, d2, k: muon_work(d1, d2),
}


def steps_on_cpu() -> str:
    """Return one optimizer step of each, side by side on a CPU."""
    timed = [row for row in read() if row["case"] == "optimizer_step" and not row["driver"] and row["p50_ms"]]
    rows = last_run(timed)
    if not rows:
        return "Not measured yet: `python -m bench --case optimizer_step` on a quiet machine."
    of = {row["variant"]: row for row in rows}
    # GFLOP a ms, of float32, as the same run measured it; that of Muon's products, in bfloat16, it did not
    rate = float(of[OURS]["flop"]) / 1e9 / float(of[OURS]["floor_ms"])
    lines, alone = [], {}
    for row in rows:
        p20, p50, p80 = (f"{float(row[name]):.1f}" for name in ("p20_ms", "p50_ms", "p80_ms"))
        gflop = float(row["flop"] or "nan") / 1e9
        alone[row["variant"]] = gflop / (rate if row["variant"] != MUON else float("nan"))
        counts = [f"{count:.0f}".replace("nan", "") for count in (gflop, alone[row["variant"]])]
        times = [f"{p50} [{p20}, {p80}]", f"{float(row['ratio']):.1f}"]
        lines.append([row["variant"], row["rank"], row["threads"], *times, *counts])
    header = ["optimizer step", "rank", "threads", "ms, median [p20, p80]", "× AdamW", "GFLOP", "these alone, ms"]
    least = [f"{alone[OURS] / float(of[peer]['p50_ms']):.2f} of {peer}" for peer in (OSF, MUON)]
    return (
        f"{table(header, lines, 'llrrrrr')}\n\n{rows[-1]['model']}, {rows[-1]['shape']}, {rows[-1]['dtype']}; "
        f"{measured(rows)}. Products reached {1e3 * rate:.0f} GFLOP/s. At that rate the FLOP of {OURS} alone take "
        f"{' and '.join(least)}, which multiplies in bfloat16."
    )


def fp8_errors() -> str:
    """Return the error of G' by each way to multiply the correction, beside ‖δ‖ / ‖G‖."""
    rows = last_run([row for row in read() if row["case"] == "fp8_cpu"])
    columns, lines = pivot(
        rows,
        lambda row: (row["shape"], row["spectrum"], row["energy"]),
        lambda row: row["variant"] if row["dtype"] == "fp32" else f"{row['variant']}, G' in bf16",
        lambda row: (
            row["rel_error"] if row["dtype"] == "fp32" else f"{row['rel_error']}, {row['verdict'].split(',')[0]}"
        ),
    )
    shown = table(["W", "G", "‖δ‖ / ‖G‖", *columns], [[line[0].replace("x", " × "), *line[1:]] for line in lines])
    return f"{shown}\n\n({measured(rows)})"


def fp8_costs() -> str:
    """Return the floor of a step of Falcon3-1B with the correction in FP8 beside that of today's."""
    columns, lines = pivot(
        fp8_cpu.costs(),
        lambda cost: (cost[1],),
        lambda cost: f"{cost[0]}, ms",
        lambda cost: (
            f"{fp8_cpu.with_fp8(H200).floor(cost[2]):.2f}" + (f", {cost[3] / 1e9:.2f} GB more" * (cost[3] > 0))
        ),
    )
    return table(["Falcon3-1B, full rank", *columns], lines)
