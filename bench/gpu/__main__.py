"""``python -m bench.gpu [--quick] [--dry-run] [PART …]``: measures on this GPU and writes bench/results/gpu.csv.

Rows are printed and written as they come: a part that fails leaves its reason in a row, and what was measured before.
"""

import argparse
import csv
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from bench.results import conditions

FILE = Path(__file__).parents[1] / "results" / "gpu.csv"
COLUMNS = ["part", "variant", "shape", "dtype", "layout", "p20_ms", "p50_ms", "p80_ms", "tflops", "ratio", "ratio_to",
           "flop", "error", "device", "driver", "torch", "triton", "date", "commit"]  # fmt: skip
# in the order of their use: the first decides which products stay with cuBLAS
PARTS = ["products", "step", "memcheck", "racecheck"]


def measure(part: str, quick: bool) -> Iterator[dict]:
    """The rows of one part."""
    if part == "products":
        from bench.gpu import products

        yield from products.rows(quick)
    elif part == "step":
        from bench.gpu import step

        yield from step.rows(quick)
    else:
        yield _sanitize(part)


def _sanitize(tool: str) -> dict:
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(sanitizer).exists():
        return {"variant": tool, "error": "compute-sanitizer is not installed"}
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", "bench.gpu.sanitize"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    last = [line for line in done.stdout.splitlines() if "ERROR SUMMARY" in line or "RACECHECK SUMMARY" in line]
    return {"variant": tool, "error": "" if done.returncode == 0 else (last or done.stderr.splitlines() or ["?"])[-1]}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="two shapes and two layers")
    parser.add_argument("--dry-run", action="store_true", help="say what would be measured")
    arguments = parser.parse_args()
    parts = arguments.parts or PARTS
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there is {', '.join(PARTS)}")
    if arguments.dry_run:
        print(f"would measure {', '.join(parts)} and write {FILE}")
        return
    if not torch.cuda.is_available():
        parser.error("this machine has no CUDA GPU; --dry-run says what would be measured")

    where = conditions()
    FILE.parent.mkdir(parents=True, exist_ok=True)
    with FILE.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for part in parts:
            started = time.perf_counter()
            for row in _guarded(part, arguments.quick):
                writer.writerow({"part": part, **row, **where})
                opened.flush()
                print("  ".join(f"{key}={value}" for key, value in row.items() if value != ""), flush=True)
            print(f"{part}: {time.perf_counter() - started:.0f} s", flush=True)
    print(f"written to {FILE}")


def _guarded(part: str, quick: bool) -> Iterator[dict]:
    # the machine is lent for minutes: one part's failure must not cost the others
    try:
        yield from measure(part, quick)
    except Exception as reason:
        yield {"variant": "failed", "error": f"{type(reason).__name__}: {reason}".splitlines()[0][:300]}


if __name__ == "__main__":
    main()
