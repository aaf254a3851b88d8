"""``python -m bench.gpu decisions``: decide from this GPU's rows of the case ``shapes`` who computes each stage."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence

import torch

from bench.results import Table, conditions, read
from bench.run import DTYPES
from gsr_kernels.backends.dispatch import KEY, MEASURED, architecture

COLUMNS = (*KEY, "backend", "torch_ms", "triton_ms", "device", "date", "commit")
# by so much torch must be faster to take a stage from Triton: less is noise
MARGIN = 1.03


def decide(rows: Iterable[dict[str, str]], generation: int) -> Iterator[dict[str, object]]:
    """A row for each stage and shape that both computed."""
    pairs: dict[tuple[object, ...], dict[str, dict[str, str]]] = {}
    for row in rows:
        if row["case"] == "shapes" and not row["failed"]:
            stage, backend = row["variant"].split()
            pairs.setdefault((generation, stage, *_of(row, stage)), {})[backend] = row
    for key, both in pairs.items():
        if {"torch", "triton"} <= both.keys():
            times = {backend: float(both[backend]["p50_ms"]) for backend in ("torch", "triton")}
            faster = "torch" if times["torch"] * MARGIN < times["triton"] else "triton"
            found = {f"{backend}_ms": ms for backend, ms in times.items()}
            where = {name: both["triton"][name] for name in ("device", "date", "commit")}
            yield {**dict(zip(KEY, key)), "backend": faster, **found, **where}


def _of(row: dict[str, str], stage: str) -> tuple[object, ...]:
    """gradient, basis, out_of_span, d1, d2 and k of a row."""
    gradient, basis = (str(DTYPES[name]).removeprefix("torch.") for name in row["dtype"].split(" x "))
    d1, d2 = map(int, row["shape"].split(" x ")[-1].split("x"))
    k = min(d1, d2) if row["rank"] == "full" else min(d1, d2, int(row["rank"]))
    # the operators were given a gradient in the basis's dtype
    if stage in ("step", "update"):
        return gradient, basis, row["out_of_span"], d1, d2, k
    return basis, basis, "", d1, d2, k


def main(argv: Sequence[str]) -> int:
    """Write the decisions of this GPU."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu decisions", description=__doc__)
    parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("this machine has no CUDA GPU, whose rows would decide")
    here = conditions()["device"]
    rows = [row for row in read() if row["device"] == here]
    decisions = list(decide(rows, architecture(torch.device("cuda"))))
    Table(MEASURED, COLUMNS, KEY).add(decisions)
    stay = sum(row["backend"] == "torch" for row in decisions)
    print(f"{stay} of {len(decisions)} stages stay with torch: {MEASURED}")
    return 0
