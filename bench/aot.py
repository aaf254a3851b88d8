"""``python bench/aot.py [--all]``: every kernel compiled without a GPU, and what came of it.

One row a kernel, configuration and architecture: registers and stack bytes of a thread, shared bytes of a block, the
matrix instruction, the narrowest load of a matrix in bytes, and how tiles travel. By default all that sm_90 runs, on
aligned operands and others, and a sample of sm_80 and sm_100; with ``--all`` everything.

Exits with 1 where an sm_90 kernel spills more than 64 bytes, shared memory exceeds the architecture's, a 16-bit product
for sm_90 has no wgmma, or a kernel for aligned operands loads a matrix by less than 16 bytes.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# called by its path, a script finds its own folder alone
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import triton
import triton.language as tl
from tqdm import tqdm
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gsr_kernels.backends.dispatch import PAIRS
from gsr_kernels.backends.triton import (
    adamw_kernels,
    merge,
    product,
    recompose,
    rescale,
    sign_counts,
    sketch,
    skew,
    stability,
    step_kernels,
    tiles,
)
from gsr_kernels.backends.triton.configurations import BLOCK, configuration, options
from gsr_kernels.backends.triton.forms import UPDATES, Form, Update
from gsr_kernels.backends.triton.product import TYPES

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
KERNELS = Path(__file__).parents[1] / "docs" / "kernels.md"
SHARED = {80: 166_912, 90: 232_448, 100: 232_448}
SPILL = 64
UNALIGNED = ", unaligned"
COPY = re.compile(r"cp\.async\.c[ag]\.shared\.global \[.*?\], \[.*?\], (0x[0-9a-f]+|\d+)")
# with a mask: of scalars there is none
LOAD = re.compile(r"@%p\d+ ld\.global(?:\.[\w:]+)*?(?:\.v(\d))?\.[bsuf](\d+) ")
# where matrices are loaded: lines of the source, file by file
MATRIX_LOADS = {
    (Path(inspect.getsourcefile(source) or "").name, first + i)
    for source in (tiles, product, step_kernels.largest.fn)
    for lines, first in [inspect.getsourcelines(source)]
    for i in range(len(lines) + 1)
}
PLACE = re.compile(r"// (\w+\.py):(\d+)")
COLUMNS = {
    "kernel": 42, "configuration": 18, "sm": 3, "registers": 9, "stack": 5, "shared": 6, "instruction": 11,
    "narrowest": 9, "tiles by": 8, "fails": 0,
}  # fmt: skip
# (transposed, stored): square and kept wide, kept tall, dropped wide, dropped tall
FORMS = {"inside": (False, False), "inside tall": (True, False), "wide": (False, True), "tall": (True, True)}
POINTERS = {
    "table": "*i64", "tiles": "*i32", "finite": "*i1", "rho": "*fp32", "partials": "*fp32", "extremes": "*fp32",
    "delta": "*fp32", "scales": "*fp32", "g": "*fp32", "coefficients": "*fp32", "start": "i32", "count": "i32",
    "floor": "fp32",
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One kernel to compile."""

    kernel: Any
    name: str
    architecture: int
    signature: dict[str, str]
    constants: dict[str, Any]
    options: dict[str, Any]
    product: bool = False
    aligned: bool = False


def step_cases(architecture: int) -> Iterator[Case]:
    """The kernels of the fused step, in every form and pair of dtypes that Triton computes."""
    for gradient, stored_as in PAIRS:
        pair = f"{TYPES[gradient]} x {TYPES[stored_as]}"
        for shape, (transposed, stored) in FORMS.items():
            form = Form(gradient, stored_as, transposed, stored, even=True)
            for align in (8, 1):
                yield _product("first_product", f"{pair} {shape}", form, architecture, align)
                # the second product does not ask which way the first one was taken, unless it was stored
                for update in () if shape == "inside tall" else (None, *UPDATES[gradient]):
                    label = f"{pair} {shape}" + ("" if update is None else f", AdamW {_dtypes(update)}")
                    yield _product("second_product", label, replace(form, update=update), architecture, align)


def _product(name: str, label: str, form: Form, architecture: int, align: int) -> Case:
    cut = form.configuration(name, architecture, align > 1)
    constants = {"G_DTYPE": TYPES[form.gradient], **form.constants, "ALIGN": align, **cut.sizes}
    constants |= form.written if name == "second_product" else {}
    return Case(
        getattr(step_kernels, name), f"{name} {label}" + ("" if align > 1 else UNALIGNED), architecture, POINTERS,
        constants, cut.options, product=True, aligned=align > 1,
    )  # fmt: skip


def _dtypes(update: Update) -> str:
    kept = (update.weight, update.moment, *((update.copied,) if update.copied else ()))
    return " ".join(str(TYPES[dtype]) for dtype in kept)


def row_cases(architecture: int) -> Iterator[Case]:
    """The other kernels of the step, and the stage operators."""
    for operand in (tl.float16, tl.bfloat16):
        for form, (transposed, stored) in FORMS.items():
            shape = {"DTYPE": operand, "TRANSPOSED": transposed}
            if form != "inside tall":
                constants = {**shape, "STORED": stored, "BLOCK": BLOCK}
                yield Case(step_kernels.rescale_all, f"rescale_all {operand} {form}", architecture, POINTERS, constants,
                           options(num_warps=8))  # fmt: skip
            for align in (8, 1) if stored else ():
                cut = configuration("first_product", architecture, "as it lies")
                constants = {**shape, "ALIGN": align, "BM": cut.BM, "BN": cut.BN}
                label = f"fold {operand} {form}" + ("" if align > 1 else UNALIGNED)
                yield Case(step_kernels.fold, label, architecture, POINTERS, constants, options(num_warps=8),
                           aligned=align > 1)  # fmt: skip
    counted = POINTERS | {"settings": "*fp64", "scaling": "*fp32"}
    yield Case(adamw_kernels.prepare, "prepare", architecture, counted, {}, options(num_warps=1))
    yield Case(adamw_kernels.finish, "finish", architecture, counted, {}, options(num_warps=1))
    for gradient in TYPES.values():
        for align in (8, 1):
            constants = {"G_DTYPE": gradient, "ALIGN": align, "BLOCK": BLOCK}
            label = f"largest {gradient}" + ("" if align > 1 else UNALIGNED)
            yield Case(step_kernels.largest, label, architecture, POINTERS, constants, options(), aligned=align > 1)
    for dtype in (tl.float16, tl.bfloat16, tl.float32):
        p = f"*{dtype}"
        pointers = dict.fromkeys(("n", "s", "h", "k", "g", "p_a", "p_b", "p_c"), p)
        yield Case(skew.turn, f"skew {dtype}", architecture, pointers | {"size": "i32", "gap": "fp32"},
                   {"SIDE": skew.SIDE}, options())  # fmt: skip
        yield Case(recompose.middle, f"recompose {dtype}", architecture, pointers | {"out": "*fp32", "size": "i32"},
                   {"SIDE": recompose.SIDE}, options())  # fmt: skip
        rows = pointers | {"work": "*fp32", "out": "*fp32", "k": "i32", "rho": "fp32", "floor": "fp32"}
        yield Case(rescale.rescale_rows, f"rescale {dtype}", architecture, rows, {"BLOCK": BLOCK}, options())
        yield Case(product.multiply, f"project, recompose {dtype}", architecture, pointers,
                   {"DTYPE": dtype, "BM": 64, "BN": 64, "BK": 32}, options(num_warps=4, num_stages=2),
                   product=dtype != tl.float32)  # fmt: skip


def adapter_cases(architecture: int) -> Iterator[Case]:
    """The kernels of the adapters' losses and merges."""
    compiler = options(num_warps=8, num_stages=2)
    for dtype, lying in itertools.product((tl.float32, tl.bfloat16, tl.float16), (False, True)):
        factors = dict.fromkeys(("p_left", "p_right", "p_old_left", "p_old_right"), f"*{dtype}")
        shape = {"PRECISION": "tf32x3" if dtype == tl.float32 else "tf32", **stability.TILE}
        pointers = factors | {"p_alpha": "*fp32", "p_losses": "*fp32", "p_grad": "*fp32"}
        variants: dict[str, dict[str, Any]] = {"": {}}
        # what differs by its form does not by the kind of its 16 bits
        if dtype != tl.float16:
            variants |= {", sign": {"SIGN_ONLY": True}}
            # in float32 rank 128 spills 152 bytes
            variants |= {f", rank {rank}": {"RANK": rank, **stability.tile(rank)} for rank in (64, 128)
                         if dtype != tl.float32 or rank == 64}  # fmt: skip
            # without gradients D is walked as it is
            variants |= {} if lying else {", loss alone": {"GRADIENT": False}}
        for variant, changed in variants.items():
            constants = shape | {"LYING": lying, "GRADIENT": True, "SIGN_ONLY": False, "RANK": 16} | changed
            label = f"stability {dtype}{variant}" + (", transposed" if lying else "")
            # tiles of 32 rows, all that fits at rank 128, are too low for wgmma
            tall = constants["BM"] >= 64
            yield Case(stability.stability_rows, label, architecture, pointers, constants, compiler, product=tall)
        if not lying:
            pointers = factors | {"p_counts": "*i32"}
            yield Case(sign_counts.count_rows, f"sign_counts {dtype}", architecture, pointers, shape, compiler,
                       product=True)  # fmt: skip
            pointers = dict.fromkeys(("p_w", "p_left", "p_right"), f"*{dtype}") | {"share": "fp32"}
            for how, largest in (("magnitude", True), ("sum", False)):
                yield Case(merge.merge_tiles, f"merge {dtype}, {how}", architecture, pointers,
                           shape | {"MAGNITUDE": largest}, compiler, product=True)  # fmt: skip


def sketch_cases(architecture: int) -> Iterator[Case]:
    """The sketch of a randomized SVD; W comes in float32."""
    pointers = {"p_w": "*fp32", "p_y": "*fp32", "seed": "i64"}
    for kind, sparse in (("gaussian", False), ("sparse", True)):
        yield Case(sketch.sketch_kernel, f"sketch {kind}", architecture, pointers, {"SPARSE": sparse, **sketch.TILE},
                   sketch.OPTIONS, product=True)  # fmt: skip


def cases(everything: bool) -> Iterator[Case]:
    """What is compiled: all that sm_90 runs and a sample of the others, or everything."""
    for architecture in (90, 80, 100):
        found = [*step_cases(architecture), *row_cases(architecture), *adapter_cases(architecture)]
        yield from found if everything or architecture == 90 else found[::19]
        yield from sketch_cases(architecture)


def report(case: Case) -> dict[str, Any]:
    """Compiles and looks at what came of it."""
    names = case.kernel.arg_names
    kinds = {name: case.signature.get(name, "i32") for name in names if name not in case.constants}
    signature = {name: kinds.get(name, "constexpr") for name in names}
    divisible = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name].startswith("*")}
    constants = {(names.index(name),): value for name, value in case.constants.items()}
    compiled = triton.compile(
        ASTSource(case.kernel, signature, constants, divisible),
        target=GPUTarget("cuda", case.architecture, 32),
        options=case.options,
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [CUOBJDUMP, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    ptx = compiled.asm["ptx"]
    instructions = [name for name in ("tcgen05.mma", "wgmma.mma", "mma.sync") if name in ptx]
    cut = [str(case.constants[name]) for name in ("BM", "BN", "BK") if name in case.constants]
    row = {
        "kernel": case.name,
        "configuration": "x".join(cut) + f" {case.options['num_warps']}w {case.options['num_stages']}s",
        "sm": case.architecture,
        "registers": int(re.findall(r"REG:(\d+)", usage)[0]),
        "stack": int(re.findall(r"STACK:(\d+)", usage)[0]),
        "shared": compiled.metadata.shared,
        "instruction": instructions[0].split(".")[0] if instructions else "",
        "narrowest": narrowest_load(ptx),
        "tiles by": "TMA" if "cp.async.bulk.tensor" in ptx else "cp.async" if "cp.async.c" in ptx else "loads",
    }
    row["fails"] = "; ".join(failures(case, row))
    return row


def narrowest_load(ptx: str) -> int | None:
    """Bytes of the narrowest load of a matrix; None where there is none."""
    widths, of_a_matrix = [], False
    for line in ptx.splitlines():
        if "\t.loc\t" in line:
            place = PLACE.search(line)
            of_a_matrix = place is not None and (place[1], int(place[2])) in MATRIX_LOADS
        elif of_a_matrix and (copy := COPY.search(line)):
            widths.append(int(copy[1], 0))
        elif of_a_matrix and (load := LOAD.search(line)):
            widths.append(int(load[1] or 1) * int(load[2]) // 8)
    return min(widths, default=None)


def failures(case: Case, row: dict[str, Any]) -> Iterator[str]:
    """What must not ship."""
    if row["sm"] == 90 and row["stack"] > SPILL:
        yield f"spills {row['stack']} bytes"
    if row["shared"] > SHARED[row["sm"]]:
        yield f"needs {row['shared']} bytes of shared memory"
    if row["sm"] == 90 and case.product and row["instruction"] != "wgmma":
        yield "no wgmma"
    if case.aligned and (row["narrowest"] or 0) < 16:
        yield f"loads {row['narrowest']} bytes"


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    return "  ".join(f"{row[column]!s:{width}}" for column, width in COLUMNS.items()).rstrip()


def write_docs(rows: list[dict[str, Any]]) -> None:
    """The products for sm_90 on aligned operands."""
    shown = [row for row in rows if row["sm"] == 90 and "_product " in row["kernel"] and UNALIGNED not in row["kernel"]]
    columns = ("kernel", "configuration", "registers", "stack", "shared")
    lines = ["| kernel, gradient x basis, form | configuration | registers | stack | shared |", "|---|---|---|---|---|"]
    lines += ["| " + " | ".join(str(row[column]) for column in columns) + " |" for row in shown]
    head, old = KERNELS.read_text().split("<!-- aot -->\n")
    tail = old.split("<!-- /aot -->\n")[1]
    KERNELS.write_text(head + "\n".join(["<!-- aot -->", *lines, "<!-- /aot -->", ""]) + tail)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every configuration of every architecture")
    parser.add_argument("--only", default="", help="kernels in whose name this regular expression is found")
    parser.add_argument("--sm", type=int, nargs="+", help="these architectures alone")
    parser.add_argument("--docs", action="store_true", help="write the products' table of docs/kernels.md anew")
    arguments = parser.parse_args()
    chosen = [case for case in cases(arguments.all) if re.search(arguments.only, case.name)]
    chosen = [case for case in chosen if arguments.sm is None or case.architecture in arguments.sm]
    if not chosen:
        parser.error(f"no kernel for sm {arguments.sm} with a name like {arguments.only!r}")
    print(line(dict(zip(COLUMNS, COLUMNS))))
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        os.environ.setdefault("TRITON_CACHE_DIR", cache)
        for case in tqdm(chosen, desc="compiling", unit="kernel"):
            rows.append(report(case))
            tqdm.write(line(rows[-1]))
    if arguments.docs:
        write_docs(rows)
    failed = sum(bool(row["fails"]) for row in rows)
    print(f"{len(rows)} kernels, {failed} fail; torch {torch.__version__}, triton {triton.__version__}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
