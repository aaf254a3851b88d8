import os
import subprocess
import sys

ONES = """
import sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from bench.gpu.kernels import row_cases

for case in row_cases(90):
    names = case.kernel.arg_names
    if case.name.split()[0].rstrip(",") not in sys.argv[1:]:
        continue
    constants = {(names.index(name),): value for name, value in case.constants.items()}
    signature = {name: "constexpr" if name in case.constants else case.signature.get(name, "i32") for name in names}
    # as a launch with 1 for every integer does
    for parameter in case.kernel.params:
        if signature[parameter.name] == "i32" and not parameter.do_not_specialize:
            signature[parameter.name], constants[parameter.num,] = "constexpr", 1
    compile(ASTSource(case.kernel, signature, constants), target=GPUTarget("cuda", 90, 32), options=case.options)
    print(case.name)
"""


DIVISIONS = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from bench.gpu.kernels import row_cases, step_cases

for case in [*step_cases(90), *row_cases(90)]:
    kernel, *rest = case.name.split()
    if rest not in (["fp32", "x", "fp16"], ["fp32", "x", "fp16", "wide"], ["fp16"]) or kernel == "largest":
        continue
    names = case.kernel.arg_names
    constants = {(names.index(name),): value for name, value in case.constants.items()}
    signature = {name: "constexpr" if name in case.constants else case.signature.get(name, "i32") for name in names}
    source = ASTSource(case.kernel, signature, constants)
    ptx = compile(source, target=GPUTarget("cuda", 90, 32), options=case.options).asm["ptx"]
    assert not any(name in ptx for name in ("div.full", "div.approx", "rcp.approx")), case.name
    print(kernel)
"""


def run(*arguments):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_stages_compile_where_every_size_is_one():
    stages = ("skew", "rescale", "recompose", "project")
    done = run(ONES, *stages)
    assert done.returncode == 0, done.stderr
    assert all(stage in done.stdout for stage in stages), done.stdout


def test_divisions_are_rounded():
    done = run(DIVISIONS)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == {"first_product", "rescale_all", "second_product"}
