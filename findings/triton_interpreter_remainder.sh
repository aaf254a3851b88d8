#!/usr/bin/env bash
# triton 3.9.0: in the interpreter (TRITON_INTERPRET=1) `i // SIZE` of a loop's index and a tl.constexpr of the module
# works, `i % SIZE` raises TypeError: unsupported operand type(s) for %: 'int' and 'constexpr'. Compiled, both work: the
# kernel below gives PTX for sm_90.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$work/venv/bin/pip" install --quiet --no-deps triton==3.9.0
cat > "$work/kernels.py" <<'PY'
import triton
import triton.language as tl

SIZE = tl.constexpr(4)


@triton.jit
def quotient(y, n):
    for i in tl.range(tl.program_id(0), n, tl.num_programs(0)):
        tl.store(y + i, i // SIZE)


@triton.jit
def remainder(y, n):
    for i in tl.range(tl.program_id(0), n, tl.num_programs(0)):
        tl.store(y + i, i % SIZE)
PY
cat > "$work/compiled.py" <<'PY'
import triton
from kernels import quotient, remainder
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

print("triton", triton.__version__)
for kernel in (quotient, remainder):
    source = ASTSource(kernel, signature={"y": "*i32", "n": "i32"}, constexprs={})
    assert ".entry" in triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
    print(kernel.__name__, "compiles for sm_90")
PY
cat > "$work/interpreted.py" <<'PY'
import torch
from kernels import quotient, remainder

y = torch.zeros(8, dtype=torch.int32)
quotient[(1,)](y, 8)
print("i // SIZE:", y.tolist())
assert y.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
try:
    remainder[(1,)](y, 8)
except Exception as error:
    print("i % SIZE:", error)
    assert "unsupported operand type(s) for %: 'int' and 'constexpr'" in str(error)
else:
    raise SystemExit("i % SIZE works now")
print("as described")
PY
cd "$work"
venv/bin/python -W ignore compiled.py
TRITON_INTERPRET=1 venv/bin/python interpreted.py
