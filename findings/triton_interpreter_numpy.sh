#!/usr/bin/env bash
# triton 3.6.0, the one that torch 2.10 brings, with numpy 2.4.6: in the interpreter (TRITON_INTERPRET=1) every loop over a
# bound that is an argument or was loaded raises "only 0-dimensional arrays can be converted to Python scalars". Its
# scalars are arrays of one element, which numpy 2.4 no longer turns into an int. With numpy 2.3.5 the same kernel gives
# the sum; triton 3.9.0 works with both. Constant bounds (tl.constexpr) work everywhere.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$work/venv/bin/pip" install --quiet --no-deps --target "$work/triton-3.6.0" triton==3.6.0
"$work/venv/bin/pip" install --quiet --no-deps --target "$work/triton-3.9.0" triton==3.9.0
"$work/venv/bin/pip" install --quiet --no-deps --target "$work/numpy-2.3.5" numpy==2.3.5
cat > "$work/check.py" <<'PY'
import sys

import numpy
import torch
import triton
import triton.language as tl


@triton.jit
def total(x, y, n, N: tl.constexpr):
    up_to_constant, up_to_argument = 0.0, 0.0
    for i in range(0, N):
        up_to_constant += tl.load(x + i)
    tl.store(y, up_to_constant)
    for i in range(0, n):
        up_to_argument += tl.load(x + i)
    tl.store(y + 1, up_to_argument)


y = torch.zeros(2)
try:
    total[(1,)](torch.ones(5), y, 5, N=5)
    said = "right"
except Exception as error:
    said = str(error)
print("triton", triton.__version__, "numpy", numpy.__version__, y.tolist(), said)
assert y[0] == 5
if sys.argv[1] == "raises":
    assert "only 0-dimensional arrays" in said
else:
    assert y[1] == 5
PY
cd "$work"
export TRITON_INTERPRET=1
PYTHONPATH=triton-3.6.0 venv/bin/python check.py raises
PYTHONPATH=triton-3.6.0:numpy-2.3.5 venv/bin/python check.py works
PYTHONPATH=triton-3.9.0 venv/bin/python check.py works
PYTHONPATH=triton-3.9.0:numpy-2.3.5 venv/bin/python check.py works
echo "as described"
