"""``python -m bench.gpu sass``: count instructions in the machine code of the step's kernels for sm_90. Nothing is run.

One row a kernel: the instructions of one step along the depth of its product, the matrix instructions and the stores to
shared memory among them, and how often a tile waits for global memory and at barriers after its product.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bench.gpu import nvcc
from bench.gpu.aot import compiled, dump
from bench.gpu.kernels import Case, step_cases

SHIPPED = (
    r"^(first_product (by TMA )?(bf16|fp32) x fp16(, transposed)?|first_product by TMA bf16 x bf16|second_product "
    r"(bf16 x fp16 (wide|inside), AdamW fp32 fp32 bf16|fp32 x fp16 wide, AdamW fp32 fp32))$"
)
COLUMNS = {"kernel": 58, "instructions": 12, "GMMA": 4, "stores": 6, "waits": 5, "barriers": 8}
LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(.+?)\s*;")
PREDICATE = re.compile(r"^@!?U?P\w+ ")
REGISTER = re.compile(r"\bR(\d+)\b(\.64)?")
JUMP = re.compile(r"\bBRA(?:\.\w+)* (?:!?U?P\d, )?(?:`\()?0x([0-9a-f]+)")


@dataclass(frozen=True)
class Instruction:
    """One instruction, without its predicate."""

    address: int
    text: str

    @property
    def name(self) -> str:
        """Return the opcode with its modifiers, say LDG.E.128."""
        return self.text.split()[0]


def row(case: Case) -> dict[str, Any]:
    """Compile a kernel and return its counts."""
    return {"kernel": case.name, **counts(dump(compiled(case).asm["cubin"], "-sass"))}


def counts(sass: str) -> dict[str, int]:
    """Count in what ``cuobjdump -sass`` prints of a kernel that multiplies."""
    code = [Instruction(int(address, 16), PREDICATE.sub("", text)) for address, text in LINE.findall(sass)]
    multiplying = [loop for loop in loops(code) if any("GMMA" in one.name for one in code[loop[0] : loop[1]])]
    first, last = min(multiplying, key=lambda loop: loop[1] - loop[0])
    step = [one.name for one in code[first : last + 1]]
    return {
        "instructions": len(step),
        "GMMA": sum("GMMA." in name for name in step),
        "stores": sum(name.startswith("STS") for name in step),
        "waits": waits(code[last + 1 :]),
        "barriers": sum(one.name.startswith("BAR") for one in code[last + 1 :]),
    }


def loops(code: Sequence[Instruction]) -> Iterator[tuple[int, int]]:
    """Yield the indices of the first and the last instruction of every loop: a branch backwards and its target."""
    index = {one.address: i for i, one in enumerate(code)}
    for last, one in enumerate(code):
        jump = JUMP.search(one.text)
        if jump and (first := index[int(jump[1], 16)]) < last:
            yield first, last


def waits(code: Sequence[Instruction]) -> int:
    """Count the instructions that read a register which a load from global memory is still to fill.

    Instructions issue in order: by then all loads issued before have come back too, since they travel for as long.
    """
    count, awaited = 0, set[int]()
    for one in code:
        loads = one.name.startswith("LDG.")
        operands = one.text.removeprefix(one.name).split(",", 1 if loads else 0)
        if registers(operands[-1]) & awaited:
            count, awaited = count + 1, set()
        if loads:
            width = re.search(r"\.(64|128)\b", one.name)
            awaited |= registers(operands[0], int(width[1]) // 32 if width else 1)
    return count


def registers(text: str, count: int = 1) -> set[int]:
    """Return the registers that operands name, each the first of ``count``, or of two where it says so."""
    found = [(int(register), 2 if double else count) for register, double in REGISTER.findall(text)]
    return {first + i for first, size in found for i in range(size)}


def main(argv: Sequence[str]) -> int:
    """Print a row of each kernel that is asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu sass", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=SHIPPED, help="kernels in whose name this is found (default: some that ship)")
    arguments = parser.parse_args(argv)
    print(nvcc.line(COLUMNS, dict(zip(COLUMNS, COLUMNS))))
    for case in step_cases(90):
        if re.search(arguments.only, case.name):
            print(nvcc.line(COLUMNS, row(case)))
    return 0
