"""The floors of one optimizer step in its several forms, as a table."""

from __future__ import annotations

from collections.abc import Callable

from gsr_kernels.cli.floors import STATES, Work, adamw, transform

from .forms import literal_work
from .models import Model, model
from .peers import muon_work
from .rates import H200

# the kernels for one weight, of d1, d2 and its full rank
Form = Callable[[int, int, int], list[Work]]


def table() -> str:
    """Milliseconds of one optimizer step below which an H200 cannot go, form by form, and TFLOP of each."""
    models = {"Falcon3-1B": model("falcon3-1b"), "Llama-3-8B": model("llama3-8b")}
    heads = [f"{name}, {len(one.matrices)} matrices, {_entries(one) / 1e9:.2f} B" for name, one in models.items()]
    lines = [f"| one optimizer step, ms (TFLOP) | {' | '.join(heads)} |", "|---|--:|--:|"]
    for title, form in FORMS.items():
        cells = []
        for one in models.values():
            work = [kernel for d1, d2 in one.matrices for kernel in form(d1, d2, min(d1, d2))]
            cells.append(f"{H200.floor(work):.1f} ({sum(kernel.flop for kernel in work) / 1e12:.2f})")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _fused(out_of_span: str, gradient: int, states: str, rank: int | None = None) -> Form:
    return lambda d1, d2, k: transform(d1, d2, min(k, rank or k), out_of_span, 2, gradient, end=STATES[states])


def _literal(number: int, unit: str) -> Form:
    return lambda d1, d2, k: literal_work(d1, d2, k, "drop", number, unit) + adamw(d1 * d2, 4, "fp32")


def _apart(gradient: int, states: str) -> Form:
    return lambda d1, d2, k: transform(d1, d2, k, "drop", 2, gradient) + adamw(d1 * d2, gradient, states)


def _adamw(gradient: int, states: str) -> Form:
    return lambda d1, d2, _: adamw(d1 * d2, gradient, states)


def _entries(one: Model) -> int:
    return sum(d1 * d2 for d1, d2 in one.matrices)


FORMS: dict[str, Form] = {
    "literal form in its best order, fp32, then AdamW": _literal(4, "fp32"),
    "the same in TF32": _literal(4, "tf32"),
    "the same with bf16 operands": _literal(2, "16-bit"),
    "two products, then AdamW, fp32 gradient and states": _apart(4, "fp32"),
    "two products, then AdamW, 16-bit gradient and states": _apart(2, "16-bit"),
    "GSRAdamW, drop, fp32 gradient and states": _fused("drop", 4, "fp32"),
    "GSRAdamW, keep, fp32 gradient and states": _fused("keep", 4, "fp32"),
    "GSRAdamW, drop, 16-bit gradient, fp32 master": _fused("drop", 2, "fp32 master, 16-bit copy"),
    "GSRAdamW, drop, 16-bit gradient and states": _fused("drop", 2, "16-bit"),
    "GSRAdamW, rank 256, fp32 gradient and states": _fused("keep", 4, "fp32", 256),
    "GSRAdamW, rank 256, 16-bit gradient and states": _fused("keep", 2, "16-bit", 256),
    "AdamW alone, fp32 gradient and states": _adamw(4, "fp32"),
    "AdamW alone, 16-bit gradient and states": _adamw(2, "16-bit"),
    "products of Muon's five Newton–Schulz iterations": lambda d1, d2, _: muon_work(d1, d2),
}
