#!/usr/bin/env bash
# torch 2.13.0: to read torch.backends.cuda.matmul.fp32_precision, change it, and write back what was read is not
# neutral. The getter returns what is in force, inherited or not; writing it pins it. A later change of the general
# setting, torch.backends.fp32_precision, then no longer reaches products, while it still reaches convolutions. After
# a library's "with full precision" block a user's switch back from TF32 does nothing, and no getter shows it before.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import torch

backends = torch.backends
print("torch", torch.__version__)
backends.fp32_precision = "tf32"
inherited = backends.cuda.matmul.fp32_precision
print("general tf32: products", inherited)
assert inherited == "tf32"

backends.fp32_precision = "ieee"
assert backends.cuda.matmul.fp32_precision == "ieee"
backends.fp32_precision = "tf32"

saved = backends.cuda.matmul.fp32_precision
backends.cuda.matmul.fp32_precision = "ieee"
backends.cuda.matmul.fp32_precision = saved

backends.fp32_precision = "ieee"
found = backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision
print("saved, changed, restored; then general ieee: products", found[0], "convolutions", found[1])
assert found == ("tf32", "ieee")
print("as described")
PY
