"""How many variants the launches of this package ask for: compiling them is most of a first step's time."""

import os
import re
import subprocess
import sys
from pathlib import Path

import gsr_kernels

# what Triton would compile for sm_90, by its own keys; nothing is compiled, launched or computed
KEYS = """
import sys
from collections import defaultdict

import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

keys = defaultdict(set)
backend = make_backend(GPUTarget("cuda", 90, 32))


def run(self, *args, grid, warmup, **kwargs):
    kwargs.setdefault("debug", False)
    _, specialization, options = create_function_from_signature(self.signature, self.params, backend)(*args, **kwargs)
    keys[self.__name__].add((str(specialization), str(options)))


JITFunction.run = run
exec(sys.argv[1])
for name, found in sorted(keys.items()):
    print(name, len(found))
"""

# sizes that are 1, odd, and multiples of 16
ADAPTERS = """
from gsr_kernels.backends.triton import merge, sketch, stability

for align in (8, 1):
    for rows, columns, rank, old in ((1, 1, 1, 1), (2, 17, 1, 16), (16, 3, 2, 5), (4, 6, 2, 32)):
        rows, columns, rank, old = (size * align for size in (rows, columns, rank, old))
        tasks = 1 + rows % 3
        B, A = torch.ones(tasks, rows, rank), torch.ones(tasks, rank, columns)
        old_B, old_A = torch.ones(tasks, rows, old), torch.ones(tasks, old, columns)
        stability.stability(B, A, old_B, old_A, torch.ones(tasks), False, True)
        stability.sign_counts(B, A, old_B, old_A)
        merge.merge(torch.ones(rows, columns), B, A, "sum", 1.0)
        sketch.sketch(torch.ones(rows, columns), rank, rows, "gaussian")
"""

PLAN = """
from gsr_kernels import SpectralBasis
from gsr_kernels.backends.triton import plan as plans
from gsr_kernels.backends.triton.plan import Plan

plans.device_properties = lambda device: (90, 132)
shapes = (32, 32), (64, 32), (32, 64), (8, 24), (3, 16, 24)
bases = [SpectralBasis.of(torch.randn(shape), precision="fp16") for shape in shapes]
Plan(bases, [torch.bfloat16] * len(bases), 0.5, ["drop"] * len(bases)).warmup()
Plan([bases[1]] * 2, [torch.bfloat16] * 2, 0.5, ["keep", "drop"]).warmup()
"""


def keys(launches):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", KEYS, launches]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(re.findall(r"^(\w+) (\d+)$", done.stdout, re.MULTILINE))


def test_the_sizes_of_adapters_are_not_compiled_in():
    # aligned rows and others; of stability both walks
    expected = {"stability_rows": "4", "count_rows": "2", "merge_tiles": "2", "sketch_kernel": "1"}
    assert keys(ADAPTERS) == expected


def test_warmup_compiles_for_one_alignment():
    # square, wide and tall; the kept tall one differs from the square one where g is found, and there alone
    expected = {"first_product": "4", "fold": "2", "largest": "1", "rescale_all": "3", "second_product": "3"}
    assert keys(PLAN) == expected


def test_kernels_use_nothing_that_old_tritons_lack():
    sources = Path(gsr_kernels.__file__).parent.glob("backends/triton/*.py")
    # there from 3.7.1 on
    assert not [source.name for source in sources if "to_tensor" in source.read_text()]
