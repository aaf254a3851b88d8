import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl

from bench.cases.products import LAYOUTS, grouped
from bench.gpu.aot import failures, narrowest_load
from bench.gpu.kernels import SHIPPED, cases
from bench.gpu.sass import counts
from gsr_kernels.backends.triton.tables import tile_table
from python_tests.oracle import error

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "kernels.md"
PRODUCTS = "_product .* x "


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs a command; no kernel is compiled twice, by whichever worker."""
    base = tmp_path_factory.getbasetemp()
    cache = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "triton"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(cache)

    def run(command, *arguments):
        command = [sys.executable, "-W", "ignore", "-m", "bench.gpu", command, *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    return run


# the sample of every change, in halves that run side by side; the kernels of the step that multiply have
# "gradient x basis" in their names
@pytest.mark.parametrize("only, products", [(PRODUCTS, 41), (f"^(?!.*{PRODUCTS})", 0)], ids=["products", "others"])
def test_what_ships_compiles_as_it_must(run, only, products):
    done = run("aot", "--only", only)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " kernels, 0 fail" in done.stdout
    rows = [row for row in done.stdout.splitlines() if re.search("_product .* x .* 90 ", row)]
    assert len(rows) == products and all("wgmma" in row for row in rows)
    assert all(("TMA" if "by TMA" in row else "cp.async") in row for row in rows if "unaligned" not in row)
    stacks = [re.findall(r" 90 +\d+ +(\d+) ", row)[0] for row in rows if "by TMA" in row]
    assert stacks == (["0"] * 4 if products else [])
    if products and f"triton {triton.__version__} " in PAGE.read_text():
        told = re.findall(
            r"^\| (\w+_product .*?) \| (.*?) \| (\d+) \| (\d+) \| (\d+) \|$", PAGE.read_text(), re.MULTILINE
        )
        found = [re.findall(r"^(\w+_product .*?)  +(\S+ \S+ \S+) +90 +(\d+) +(\d+) +(\d+) ", row)[0] for row in rows]
        assert len(told) == 22 and set(told) <= set(found)


def test_the_narrowest_load_of_a_matrix():
    ptx = """
	.loc	1 24 12, function_name $L__info_string0, inlined_at 1 239 12 // step_kernels.py:24:12
	@%p3 ld.global.b16 { %r276 }, [ %rd86 + 0 ];
	.loc	2 24 12, function_name $L__info_string0, inlined_at 1 239 12 // tiles.py:24:12
	ld.global.b64 { %rd6 }, [ %rd7 + 0 ];
	@%p34 ld.global.v4.b32 { %r276, %r277, %r278, %r279 }, [ %rd86 + 0 ];
	.loc	2 21 12, function_name $L__info_string0, inlined_at 1 212 20 // tiles.py:21:12
	cp.async.cg.shared.global [ %r101 + 0 ], [ %rd33 + 0 ], 0x10, %r102;
"""
    assert narrowest_load(ptx) == 16
    assert narrowest_load(ptx.replace("0x10", "0x4")) == 4
    assert narrowest_load(ptx.replace("v4.b32", "v2.b16")) == 4
    assert narrowest_load(ptx.replace("global.v4", "global.L1::evict_last.v2")) == 8
    assert narrowest_load(ptx.replace("tiles.py", "skew.py")) is None


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"stack": 65}, "spills 65"),
        ({"shared": 232_449}, "shared memory"),
        ({"instruction": "mma"}, "no wgmma"),
        ({"narrowest": 8}, "loads 8"),
        ({"narrowest": None}, "loads None"),
        ({}, None),
    ],
)
def test_what_must_not_ship(change, reason):
    row = {"sm": 90, "stack": 64, "shared": 232_448, "instruction": "wgmma", "narrowest": 16, **change}

    class Case:
        product = aligned = True

    assert [reason in found for found in failures(Case, row)] == ([] if reason is None else [True])


def test_the_machine_code_of_the_products(run):
    by_tma = "first_product by TMA (bf16 x fp16|bf16 x bf16|fp16 x fp16, transposed)"
    updating = "second_product (bf16|fp32) x fp16 (inside|wide), AdamW [^,]*"
    done = run("sass", "--only", f"^(first_product bf16 x fp16(, transposed)?|{by_tma}|{updating})$")
    assert done.returncode == 0, done.stderr
    lines, forms = done.stdout.splitlines()[1:], ("inside", "wide")
    first, by_tma, inside, second = (
        [list(map(int, line.split()[-5:])) for line in sorted(lines) if re.match(name, line)]
        for name in ("first_product bf16", "first_product by TMA", *(f"second_product .* {form}" for form in forms))
    )
    # of a step along the depth: instructions, matrix instructions, stores to shared memory; after it: waits, barriers;
    # 119 and 124 by Triton 3.6
    assert len(first) == 2 and all(row[0] <= 142 and row[1:3] == [2, 0] for row in first)
    # four times the product of such a step; as the operands lie, and with G rounded in registers, 74, 76 and 176 by 3.6
    stored_too, rounded = [row for row in by_tma if row[0] <= 80], [row for row in by_tma if 80 < row[0] <= 180]
    assert len(stored_too) == 2 and len(rounded) == 1 and all(row[1:3] == [4, 0] for row in by_tma)
    assert len(second) == 4 and all(row[0] <= 130 and row[1:3] == [4, 0] for row in second)
    # one wait for each of eight strips; beside G, a master and its copy, one more
    assert [row[3] for row in second] == [8] * 4 and [row[3] for row in inside] == [8, 8, 9, 8]
    # the copy is stored by the threads that loaded W: no strip of W, m or v changes hands
    assert second[2][4] <= 16


def test_counts_in_machine_code():
    sass = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/              @!P0 STS.128 [R4+UR5], R8 ;
        /*0020*/                   HGMMA.64x128x16.F32 R24, R8, gdesc[UR4], R24 ;
        /*0030*/               @P1 BRA 0x10 ;
        /*0040*/                   LDG.E.128 R4, desc[UR8][R2.64] ;
        /*0050*/                   LDG.E R9, desc[UR8][R2.64+0x40] ;
        /*0060*/                   FADD R10, R7, R11 ;
        /*0070*/                   FADD R12, R9, R11 ;
        /*0078*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0080*/                   LDG.E.64 R2, desc[UR8][R2.64] ;
        /*0090*/                   LDG.E R5, desc[UR8][R2.64] ;
"""
    # R7 is the last of four; R9 came with it; the next wait is for an address
    assert counts(sass) == {"instructions": 3, "GMMA": 1, "stores": 1, "waits": 2, "barriers": 1}


@pytest.mark.parametrize("first", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_bare_product_that_cublas_is_measured_against(layout, first):
    left, right = torch.randn(2, 40, 24).to(first), torch.randn(2, 24, 56).to(torch.float16)
    out = torch.full((2, 40, 56), torch.nan)
    tiles = torch.from_numpy(tile_table(range(2), [(40, 56)] * 2, 32, 32))
    a, b = (one.mT.contiguous() if way == "T" else one for one, way in zip((left, right), layout))
    grouped[(2,)](
        a, b, out, tiles, len(tiles), 40, 56, 24, DTYPE=tl.float16, LEFT_T=layout[0] == "T", RIGHT_T=layout[1] == "T",
        BM=32, BN=32, BK=16,
    )  # fmt: skip
    assert error(out, left.half().double() @ right.double()) < 1e-6


def test_the_sample_has_a_kernel_of_each_kind():
    whole = [case for case in cases(True) if case.architecture == 90]
    chosen = [case for case in cases(False) if case.architecture == 90]
    assert {case.kernel.__name__ for case in chosen} == {case.kernel.__name__ for case in whole}
    shipped = [case.name for case in whole if re.search(SHIPPED, case.name)]
    assert {name for name in shipped if "unaligned" not in name} <= {case.name for case in chosen}
    assert {case.architecture for case in cases(False)} == {80, 90, 100}
    # and so has what old versions of Triton compile
    pattern = re.search("^SAMPLE := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].replace("$$", "$")
    oldest = [case for case in chosen if re.search(pattern, case.name)]
    assert {case.kernel.__name__ for case in oldest} == {case.kernel.__name__ for case in whole}
