import os
import subprocess
import sys

import pytest
import torch
import triton.language as tl

from bench.aot import failures, narrowest_tile_load
from bench.gpu.bare import LAYOUTS, grouped
from gsr_kernels.backends.triton.tables import tile_table
from python_tests.oracle import error


def run(*arguments):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-m", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_kernels_compile_to_hopper_instructions():
    done = run("bench.aot", "--sm", "90", "--only", "bf16 x fp16 tall")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if "_product" in line]
    assert len(rows) == 2 and all("wgmma" in row and "cp.async" in row for row in rows)


def test_the_narrowest_load_of_a_tile():
    ptx = """
	.loc	1 24 12, function_name $L__info_string0, inlined_at 1 239 12 // step_kernels.py:24:12
	ld.global.b16 { %r276 }, [ %rd86 + 0 ];
	.loc	2 24 12, function_name $L__info_string0, inlined_at 1 239 12 // tiles.py:24:12
	@%p34 ld.global.v4.b32 { %r276, %r277, %r278, %r279 }, [ %rd86 + 0 ];
	.loc	2 21 12, function_name $L__info_string0, inlined_at 1 212 20 // tiles.py:21:12
	cp.async.cg.shared.global [ %r101 + 0 ], [ %rd33 + 0 ], 0x10, %r102;
"""
    assert narrowest_tile_load(ptx) == 16
    assert narrowest_tile_load(ptx.replace("0x10", "0x4")) == 4
    assert narrowest_tile_load(ptx.replace("v4.b32", "v2.b16")) == 4
    assert narrowest_tile_load(ptx.replace("tiles.py", "skew.py")) is None


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


@pytest.mark.parametrize("first", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_bare_product_that_cublas_is_measured_against(layout, first):
    left, right = torch.randn(2, 40, 24).to(first), torch.randn(2, 24, 56).to(torch.float16)
    out = torch.full((2, 40, 56), torch.nan)
    tiles = torch.from_numpy(tile_table(range(2), [(40, 56)] * 2, 32, 32))
    a, b = (one.mT.contiguous() if way == "T" else one for one, way in zip((left, right), layout))
    grouped[(2,)](
        a, b, out, tiles, len(tiles), 40, 56, 24, DTYPE=tl.float16, STANDING=layout[0] == "T", LYING=layout[1] == "T",
        BM=32, BN=32, BK=16,
    )  # fmt: skip
    assert error(out, left.half().double() @ right.double()) < 1e-6


def test_a_dry_run_measures_nothing():
    done = run("bench.gpu", "--dry-run")
    assert done.returncode == 0 and "would run products, tests, step, memcheck, racecheck" in done.stdout
