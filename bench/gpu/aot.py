"""``python -m bench.gpu aot``: compile every kernel without a GPU, and report what came of it.

One row a kernel, configuration and architecture: registers and stack bytes of a thread, shared bytes of a block, the
matrix instruction, the narrowest load of a matrix in bytes, and how tiles travel. By default a kernel of each kind for
sm_90, of the products those that ``attach()`` runs, and a few for sm_80 and sm_100; with ``--all`` everything.

Exits with 1 where an sm_90 kernel spills more than 64 bytes, shared memory exceeds the architecture's, a 16-bit product
for sm_90 has no wgmma, or a kernel for aligned operands loads a matrix by less than 16 bytes.
"""

from __future__ import annotations

import argparse
import inspect
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import triton
from tqdm import tqdm
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bench.docs import pages
from bench.gpu import nvcc
from bench.gpu.kernels import SHIPPED, UNALIGNED, Case, cases
from gsr_kernels.backends.triton import product, step_kernels, tiles
from gsr_kernels.backends.triton.cublas_kernels import convert, scale_factor

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
SHARED = {80: 166_912, 90: 232_448, 100: 232_448}
COPY = re.compile(r"cp\.async\.c[ag]\.shared\.global \[.*?\], \[.*?\], (0x[0-9a-f]+|\d+)")
# with a mask: of scalars there is none
LOAD = re.compile(r"@%p\d+ ld\.global(?:\.[\w:]+)*?(?:\.v(\d))?\.[bsuf](\d+) ")
# where matrices are loaded: lines of the source, file by file; δ is a vector
KERNELS = step_kernels.largest, step_kernels.first_product, convert, scale_factor
LOADING = tiles, product, *(kernel.fn for kernel in KERNELS)
MATRIX_LOADS = {
    (Path(inspect.getsourcefile(source) or "").name, max(first, 1) + i)
    for source in LOADING
    for lines, first in [inspect.getsourcelines(source)]
    for i, line in enumerate(lines)
    if "p_delta" not in line
}
SOURCE_LINE = re.compile(r"// (\w+\.py):(\d+)")
COLUMNS = {
    "kernel": 42, "configuration": 18, "sm": 3, "registers": 9, "stack": 5, "shared": 6, "instruction": 11,
    "narrowest": 9, "tiles by": 8, "fails": 0,
}  # fmt: skip


def compiled(case: Case) -> Any:
    """Compile a kernel as Triton does for a launch on aligned pointers."""
    names = case.kernel.arg_names
    kinds = {name: case.signature.get(name, "i32") for name in names if name not in case.constants}
    signature = {name: kinds.get(name, "constexpr") for name in names}
    divisible = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name].startswith("*")}
    constants = {(names.index(name),): value for name, value in case.constants.items()}
    return triton.compile(
        ASTSource(case.kernel, signature, constants, divisible),
        target=GPUTarget("cuda", case.architecture, 32),
        options=case.options,
    )


def dump(cubin: bytes, flag: str) -> str:
    """Return what cuobjdump prints of a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([CUOBJDUMP, flag, file.name], capture_output=True, text=True, check=True).stdout


def report(case: Case) -> dict[str, Any]:
    """Compile a kernel and return its row."""
    kernel = compiled(case)
    usage, ptx = dump(kernel.asm["cubin"], "--dump-resource-usage"), kernel.asm["ptx"]
    instructions = [name for name in ("tcgen05.mma", "wgmma.mma", "mma.sync") if name in ptx]
    tile = [str(case.constants[name]) for name in ("BM", "BN", "BK") if name in case.constants]
    row = {
        "kernel": case.name,
        "configuration": "x".join(tile) + f" {case.options['num_warps']}w {case.options['num_stages']}s",
        "sm": case.architecture,
        "registers": int(re.findall(r"REG:(\d+)", usage)[0]),
        "stack": int(re.findall(r"STACK:(\d+)", usage)[0]),
        "shared": kernel.metadata.shared,
        "instruction": instructions[0].split(".")[0] if instructions else "",
        "narrowest": narrowest_load(ptx),
        "tiles by": "TMA" if "cp.async.bulk.tensor" in ptx else "cp.async" if "cp.async.c" in ptx else "loads",
    }
    row["fails"] = "; ".join(failures(case, row))
    return row


def narrowest_load(ptx: str) -> int | None:
    """Return the bytes of the narrowest load of a matrix; None where there is none."""
    widths, of_a_matrix = [], False
    for line in ptx.splitlines():
        if "\t.loc\t" in line:
            source = SOURCE_LINE.search(line)
            of_a_matrix = source is not None and (source[1], int(source[2])) in MATRIX_LOADS
        elif of_a_matrix and (copy := COPY.search(line)):
            widths.append(int(copy[1], 0))
        elif of_a_matrix and (load := LOAD.search(line)):
            widths.append(int(load[1] or 1) * int(load[2]) // 8)
    return min(widths, default=None)


def failures(case: Case, row: dict[str, Any]) -> Iterator[str]:
    """Yield the reasons why a kernel must not ship."""
    if row["sm"] == 90 and row["stack"] > nvcc.SPILL:
        yield f"spills {row['stack']} bytes"
    if row["shared"] > SHARED[row["sm"]]:
        yield f"needs {row['shared']} bytes of shared memory"
    if row["sm"] == 90 and case.product and row["instruction"] != "wgmma":
        yield "no wgmma"
    if case.aligned and (row["narrowest"] or 0) < 16:
        yield f"loads {row['narrowest']} bytes"


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows of kernels, for docs/kernels.md."""
    columns = ("kernel", "configuration", "registers", "stack", "shared")
    lines = [[row[column] for column in columns] for row in rows]
    return pages.table(["kernel, gradient x basis, form", *columns[1:]], lines)


def main(argv: Sequence[str]) -> int:
    """Compile what is asked for and print a row of each."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu aot", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--all", action="store_true", help="every configuration of every architecture")
    parser.add_argument("--only", default="", help="kernels in whose name this regular expression is found")
    parser.add_argument("--sm", type=int, nargs="+", help="these architectures alone")
    parser.add_argument("--docs", action="store_true", help="alone: write the table of docs/kernels.md anew")
    arguments = parser.parse_args(argv)
    if arguments.docs:
        arguments.sm, arguments.only = [90], f"{SHIPPED}(?!.*{UNALIGNED})"
    chosen = [case for case in cases(arguments.all) if re.search(arguments.only, case.name)]
    chosen = [case for case in chosen if arguments.sm is None or case.architecture in arguments.sm]
    if not chosen:
        parser.error(f"no kernel for sm {arguments.sm} with a name like {arguments.only!r}")
    print(nvcc.line(COLUMNS, dict(zip(COLUMNS, COLUMNS))))
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        os.environ.setdefault("TRITON_CACHE_DIR", cache)
        for case in tqdm(chosen, desc="compiling", unit="kernel"):
            rows.append(report(case))
            tqdm.write(nvcc.line(COLUMNS, rows[-1]))
    if arguments.docs:
        pages.fill(pages.DOCS / "kernels.md", {"aot": table(rows)})
    failed = sum(bool(row["fails"]) for row in rows)
    print(f"{len(rows)} kernels, {failed} fail; torch {torch.__version__}, triton {triton.__version__}")
    return 1 if failed else 0
