"""Every kernel of csrc compiled for Hopper by nvcc, without a GPU: registers and spills.

    python -m bench.nvcc [--sm 80 90a 100]

Exits with 1 where a source does not compile without a warning, or a kernel for sm_90a spills more than 64 bytes.
"""

import argparse
import re
import runpy
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
SPILL = 64
# of one kernel, as ptxas tells it, in any order
FIGURES = {
    "registers": r"Used (\d+) registers",
    "stack": r"(\d+) bytes stack frame",
    "spilled": r"(\d+) bytes spill (?:stores|loads)",
    "static shared": r"(\d+) bytes smem",
}
COLUMNS = {"kernel": 60, "sm": 4, "registers": 9, "stack": 5, "spilled": 7, "static shared": 13}


SETUP = runpy.run_path(str(ROOT / "setup.py"), run_name="setup")


def compiled(source: Path, architecture: str) -> tuple[str, str]:
    """What nvcc says of a source, all warnings included, and what is wrong with that."""
    with tempfile.TemporaryDirectory() as folder:
        code = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
        command = SETUP["compile_cuda"](["-Xptxas=-v", "-lineinfo", code, "-c", str(source), "-o", f"{folder}/out.o"])
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    wrong = done.returncode or "warning" in said
    return said, f"{source.name} for sm_{architecture}:\n{said}" if wrong else ""


def rows(said: str, architecture: str) -> list[dict]:
    """One row a kernel; ValueError where ptxas told nothing of one."""
    found = []
    for part in said.split("Compiling entry function '")[1:]:
        name, figures = part.split("'", 1)
        sizes = {column: sum(map(int, re.findall(pattern, figures))) for column, pattern in FIGURES.items()}
        if not sizes["registers"]:
            raise ValueError(f"ptxas told no registers of {name}:\n{said}")
        found.append({"kernel": readable(name), "sm": architecture, **sizes})
    return found


def readable(mangled: str) -> str:
    """The kernel's own name and its template's arguments."""
    name = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True).stdout.strip()
    # between a hidden namespace, which has a hash in its name, and the parameters
    return re.sub(r"\(anonymous namespace\)::|gsr::|^void |_GLOBAL__N__\w+::", "", name).split("(")[0]


def line(row: dict) -> str:
    """A row of the table."""
    return "  ".join(f"{row[column]!s:{width}}" for column, width in COLUMNS.items()).rstrip()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.nvcc", description=__doc__)
    parser.add_argument("--sm", nargs="+", default=["90a"], help="architectures; 90a by default")
    arguments = parser.parse_args()
    if SETUP["nvcc"]() is None:
        parser.error("nvcc was not found: put it on PATH or set CUDA_HOME")
    sources = sorted((ROOT / "csrc").rglob("*.cu"))
    jobs = [(source, architecture) for architecture in arguments.sm for source in sources]
    failed = []
    print(line(dict(zip(COLUMNS, COLUMNS))))
    with ThreadPoolExecutor(2) as pool:
        for (source, architecture), (said, wrong) in zip(jobs, pool.map(lambda job: compiled(*job), jobs)):
            kernels = rows(said, architecture)
            failed += [wrong] if wrong else [] if kernels else [f"{source.name}: ptxas named no kernel"]
            for row in kernels:
                print(line(row), flush=True)
                if row["spilled"] > SPILL and architecture == "90a":
                    failed.append(f"{row['kernel']} spills {row['spilled']} bytes")
    print(*failed or [f"{len(sources)} sources, nothing failed"], sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
