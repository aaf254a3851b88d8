"""``python -m bench.gpu [--quick] [--dry-run] [PART …]``: proves and measures on this GPU, into bench/results.

Every part runs in a process of its own, after whatever became of those before it; rows are printed and written to
bench/results/gpu.csv as they come, in place of those that the part had. Exits with 1 if a part failed.
"""

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from bench.gpu.table import RESULTS, append, forget
from bench.results import conditions

FILE = RESULTS / "gpu.csv"
COLUMNS = ["part", "variant", "shape", "dtype", "layout", "p20_ms", "p50_ms", "p80_ms", "tflops", "ratio", "ratio_to",
           "flop", "error", "device", "driver", "torch", "triton", "date", "commit"]  # fmt: skip
# in the order of their use: the first decides which products stay with cuBLAS
PARTS = ["products", "tests", "step", "memcheck", "racecheck"]
ROOT = Path(__file__).parents[2]


def measure(part: str, quick: bool) -> Iterator[dict]:
    """The rows of one part."""
    if part == "products":
        from bench.gpu import products

        yield from products.rows(quick)
    elif part == "tests":
        yield _tests()
    elif part == "step":
        from bench.gpu import step

        yield from step.rows(quick)
    else:
        yield _sanitize(part)


def _tests() -> dict:
    # the project's own options ask for plugins that need not be installed beside a GPU
    options = ["-o", "addopts=--import-mode=importlib", "-p", "no:cacheprovider", "-q"]
    command = [sys.executable, "-m", "pytest", *options, "python_tests/gpu"]
    done = subprocess.run(command, cwd=ROOT, check=False)
    return {"variant": "python_tests/gpu", "error": f"pytest exited with {done.returncode}" if done.returncode else ""}


def _sanitize(tool: str) -> dict:
    from bench.gpu.sanitize import ENVIRONMENT

    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(sanitizer).exists():
        return {"variant": tool, "error": "compute-sanitizer is not installed"}
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", "bench.gpu.sanitize"]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode == 0:
        return {"variant": tool}
    print(done.stdout[-8000:], done.stderr[-4000:], sep="\n")
    last = [line for line in done.stdout.splitlines() if "SUMMARY" in line]
    return {"variant": tool, "error": (last or done.stderr.splitlines() or ["?"])[-1]}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="two shapes and two layers")
    parser.add_argument("--dry-run", action="store_true", help="say what would be run")
    arguments = parser.parse_args()
    parts = arguments.parts or PARTS
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there is {', '.join(PARTS)}")
    if arguments.dry_run:
        print(f"would run {', '.join(parts)} and write {FILE}")
        return 0
    if not torch.cuda.is_available():
        parser.error("this machine has no CUDA GPU; --dry-run says what would be run")
    if len(parts) == 1:
        return _run(parts[0], arguments.quick)

    # an illegal access ends every later launch of its process
    quick = ["--quick"] if arguments.quick else []
    failed = [part for part in parts if subprocess.call([sys.executable, "-m", "bench.gpu", part, *quick], cwd=ROOT)]
    print(f"failed: {', '.join(failed)}" if failed else "nothing failed", f"({FILE})")
    return 1 if failed else 0


def _run(part: str, quick: bool) -> int:
    """Runs one part; 1 if a row of it says what went wrong."""
    started, where, wrong = time.perf_counter(), conditions(), 0
    forget(FILE, COLUMNS, part=part, device=where["device"])
    for row in _guarded(part, quick):
        append(FILE, COLUMNS, [{"part": part, **row, **where}])
        print("  ".join(f"{key}={value}" for key, value in row.items() if value != ""), flush=True)
        wrong += bool(row.get("error"))
    print(f"{part}: {time.perf_counter() - started:.0f} s, {wrong} failed", flush=True)
    return 1 if wrong else 0


def _guarded(part: str, quick: bool) -> Iterator[dict]:
    # what was measured before stays, and the reason stands beside it
    try:
        yield from measure(part, quick)
    except Exception as reason:
        yield {"variant": "failed", "error": f"{type(reason).__name__}: {reason}".splitlines()[0][:300]}


if __name__ == "__main__":
    sys.exit(main())
