"""``python -m bench.gpu nvcc``: compile every kernel of csrc by nvcc, without a GPU, and report registers and spills.

Exits with 1 where a source does not compile without a warning, or a kernel for sm_90a spills more than 64 bytes. What
needs CUTLASS (``pip install nvidia-cutlass``, or CUTLASS_DIR) is left out by name without it, as on other GPUs.
"""

import argparse
import re
import runpy
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SPILL = 64
# of one kernel, as ptxas tells it, in any order
FIGURES = {
    "registers": r"Used (\d+) registers",
    "stack": r"(\d+) bytes stack frame",
    "spilled": r"(\d+) bytes spill (?:stores|loads)",
    "static shared": r"(\d+) bytes smem",
}
COLUMNS = {"kernel": 60, "sm": 4, "registers": 9, "stack": 5, "spilled": 7, "static shared": 13}


@cache
def setup() -> dict[str, Any]:
    """Return the functions of setup.py about compilers. RuntimeError outside of a checkout."""
    if not (ROOT / "setup.py").is_file():
        raise RuntimeError("the CUDA C++ is compiled in a checkout of the project alone: there is no setup.py here")
    return runpy.run_path(str(ROOT / "setup.py"), run_name="setup")


def sources() -> list[Path]:
    """Return every source with kernels, the candidates last."""
    return sorted((ROOT / "csrc").rglob("*.cu"), key=lambda path: (len(path.parts), path))


def compiled(source: Path, architecture: str, target: Path | None = None) -> tuple[str, str]:
    """Compile a source to an object file ``target``, or for the GPU alone.

    Returns nvcc's output, all warnings included, and the same again if something is wrong.
    """
    with tempfile.TemporaryDirectory() as folder:
        to = ["-c", "-o", str(target)] if target else ["-cubin", "-o", f"{folder}/out.cubin"]
        command = [*setup()["compile_kernels"](source, [architecture]), *to, str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    # as ptxas warns of products that it takes one after another
    wrong = done.returncode or "warning" in said or "Potential Performance Loss" in said
    return said, f"{source.name} for sm_{architecture}:\n{said}" if wrong else ""


def failures(source: str, said: str, architecture: str) -> list[str]:
    """Print the rows of a source's kernels and return what is wrong with them."""
    kernels = rows(said, architecture)
    for row in kernels:
        print(line(COLUMNS, row), flush=True)
    spilling = [row for row in kernels if row["spilled"] > SPILL and architecture == "90a"]
    return [f"{row['kernel']} spills {row['spilled']} bytes" for row in spilling] or (
        [] if kernels else [f"{source}: ptxas named no kernel"]
    )


def rows(said: str, architecture: str) -> list[dict]:
    """Return one row a kernel; ValueError where ptxas told nothing of one."""
    found = []
    for part in said.split("Compiling entry function '")[1:]:
        name, figures = part.split("'", 1)
        sizes = {column: sum(map(int, re.findall(pattern, figures))) for column, pattern in FIGURES.items()}
        if not sizes["registers"]:
            raise ValueError(f"ptxas told no registers of {name}:\n{said}")
        found.append({"kernel": readable(name), "sm": architecture, **sizes})
    return found


def readable(mangled: str) -> str:
    """Return the kernel's own name and its template's arguments."""
    # CUTLASS's are too long for c++filt
    if "cutlass13device_kernel" in mangled:
        return "second_product_adamw"
    name = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True).stdout.strip()
    # between a hidden namespace, which has a hash in its name, and the parameters
    return re.sub(r"\(anonymous namespace\)::|gsr::|^void |_GLOBAL__N__\w+::", "", name).split("(")[0]


def line(columns: Mapping[str, int], row: Mapping[str, object]) -> str:
    """Return a row of a table whose columns have these widths."""
    return "  ".join(f"{row[column]!s:{width}}" for column, width in columns.items()).rstrip()


def main(argv: Sequence[str]) -> int:
    """Compile the sources and print a row of each kernel."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu nvcc", description=__doc__)
    parser.add_argument("sources", nargs="*", metavar="SOURCE", help="names of files; all by default")
    parser.add_argument("--sm", nargs="+", default=["90a"], help="architectures; 90a by default")
    arguments = parser.parse_args(argv)
    if setup()["nvcc"]() is None:
        parser.error("nvcc was not found: put it on PATH or set CUDA_HOME")
    chosen = [source for source in sources() if source.name in arguments.sources or not arguments.sources]
    if unknown := set(arguments.sources) - {source.name for source in chosen}:
        parser.error(f"no source {', '.join(sorted(unknown))}; there is {', '.join(one.name for one in sources())}")
    jobs, failed = [], []
    for architecture in arguments.sm:
        for source in chosen:
            if reason := setup()["lacking"](source, [architecture]):
                print(f"{source.name} for sm_{architecture} is left out: {reason}")
            else:
                jobs.append((source, architecture))
    print(line(COLUMNS, dict(zip(COLUMNS, COLUMNS))))
    with ThreadPoolExecutor(2) as pool:
        for (source, architecture), (said, wrong) in zip(jobs, pool.map(lambda job: compiled(*job), jobs)):
            failed += [wrong] if wrong else failures(source.name, said, architecture)
    print(*failed or [f"{len(jobs)} compiled, nothing failed"], sep="\n")
    return 1 if failed else 0
