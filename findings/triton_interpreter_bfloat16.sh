#!/usr/bin/env bash
# triton 3.9.0: a kernel in the interpreter (TRITON_INTERPRET=1) cuts float32 off where it becomes bfloat16. A GPU, and
# torch, round to the nearest. 1 + 0.75 * 2^-7 becomes 1.0 and not 1.0078125, so errors of bfloat16 kernels measured in
# the interpreter are about twice those of the GPU, and all towards zero. float16 is rounded to nearest.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$work/venv/bin/pip" install --quiet --no-deps triton==3.9.0
cat > "$work/check.py" <<'PY'
import torch
import triton
import triton.language as tl


@triton.jit
def convert(x, y, N: tl.constexpr):
    o = tl.arange(0, N)
    tl.store(y + o, tl.load(x + o).to(y.dtype.element_ty))


print("triton", triton.__version__)
for dtype, bits in ((torch.bfloat16, 7), (torch.float16, 10)):
    x = torch.tensor([1 + 0.75 * 2.0**-bits, -1 - 0.75 * 2.0**-bits, 1 + 0.25 * 2.0**-bits, 3.0])
    y = torch.zeros(4, dtype=dtype)
    convert[(1,)](x, y, N=4)
    print(f"{dtype}: {x.tolist()} -> {y.tolist()}, torch {x.to(dtype).tolist()}")
    if dtype == torch.bfloat16:
        assert y.tolist() == [1.0, -1.0, 1.0, 3.0] != x.to(dtype).tolist()
    else:
        assert torch.equal(y, x.to(dtype))
print("as described")
PY
cd "$work" && TRITON_INTERPRET=1 venv/bin/python check.py
