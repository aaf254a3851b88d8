"""How many variants the launches of this package ask for: compiling them is most of a first step's time."""

import os
import re
import subprocess
import sys
from pathlib import Path

import gsr_kernels

ROOT = Path(__file__).parents[3]

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


binders = {}


def run(self, *args, grid, warmup, **kwargs):
    kwargs.setdefault("debug", False)
    if self not in binders:
        binders[self] = create_function_from_signature(self.signature, self.params, backend)
    _, specialization, options = binders[self](*args, **kwargs)
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

# the tests of python_tests/gpu with smaller matrices; what they find is neither looked at nor computed. Left out are
# those that launch no kernel of their own: ranks, which torch computes, and decompositions but for the sketch
GPU_TESTS = """
from importlib.machinery import SourceFileLoader
from types import SimpleNamespace

import pytest
from bench import results
from bench.gpu import stand_in

code_of = SourceFileLoader.get_code


def without_assertions(self, name):
    if "/python_tests/" not in self.path:
        return code_of(self, name)
    return compile(self.get_data(self.path), self.path, "exec", optimize=1)


# of garbage none holds; Python's own -O would compile all that is imported anew, torch too
SourceFileLoader.get_code = without_assertions
stand_in.answer()
results.Table.add = lambda *given: None
from gsr_kernels import basis
from gsr_kernels.backends import choice
from gsr_kernels.backends.triton import plan as plans, sketch, trial
from python_tests import oracle
from python_tests.gpu import weights

plans.device_properties = lambda device: (90, 132)
torch.linalg.qr = lambda X: SimpleNamespace(Q=X)
torch.testing.assert_close = lambda *given, **named: None
stored = basis.storage_dtype
basis.storage_dtype = lambda precision, *given: stored(precision or "fp16", *given)
check = choice._checked
choice._checked = lambda *given: check(*given) and ""
oracle.two_products = lambda G, *given: G
oracle.diagonal = lambda G, U, Vh: U
oracle.double = lambda *given: given
oracle.error = lambda *given: 0.0
weights.SHAPES = [(d1 // 32, d2 // 32) for d1, d2 in weights.SHAPES]
weights.TRUNCATED = [(512, 512), (1024, 512)]
weights.STEPS = weights.REPEATS = 2
names = "accuracy", "adapters", "attach", "gsr_adamw", "plan", "stages"
files = [f"python_tests/gpu/test_{name}.py" for name in names]
quiet = ["-o", "addopts=--import-mode=importlib", "-q", "-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
# without a capture no address is refused
failed = pytest.main([*quiet, "--assert=plain", "-k", "not replayed", *files])
for kind, seed in (("gaussian", 0), ("gaussian", 2**40 + 7), ("sparse", 2**40 + 7)):
    sketch.sketch(torch.ones(64, 64), 32, seed, kind)
if failed:
    sys.exit("a test failed")
"""


def keys(launches, **environment):
    environment |= {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", KEYS, launches]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(re.findall(r"^(\w+) (\d+)$", done.stdout, re.MULTILINE))


def test_the_sizes_of_adapters_are_not_compiled_in():
    # aligned rows and others; of stability both walks
    expected = {"stability_rows": "4", "count_rows": "2", "merge_tiles": "2", "sketch_kernel": "1"}
    assert keys(ADAPTERS) == expected


def test_warmup_compiles_for_one_alignment():
    # g is found in two ways; G' then of square, wide and tall
    expected = {"first_product": "2", "fold": "2", "largest": "1", "rescale_all": "1", "second_product": "3"}
    assert keys(PLAN) == expected


def test_the_gpu_tests_compile_few(tmp_path):
    counts = keys(GPU_TESTS, XDG_CACHE_HOME=str(tmp_path))
    assert sum(map(int, counts.values())) <= 120, counts


def test_kernels_use_nothing_that_old_tritons_lack():
    sources = Path(gsr_kernels.__file__).parent.glob("backends/triton/*.py")
    # there from 3.7.1 on
    assert not [source.name for source in sources if "to_tensor" in source.read_text()]
