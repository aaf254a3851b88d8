#!/usr/bin/env bash
# torch 2.13.0 on a CPU: torch.linalg.svd of a DIAGONAL float32 matrix loses small singular values from 26 rows on.
# Up to 25 rows every value is exact. From 26 on nothing below 2^-24 of the largest is left: 1e-12 becomes 6e-8.
# svdvals of the same matrix is exact. So whether vectors are asked for decides about the values.
# (Divide and conquer takes over above 25 rows, and works to an absolute error of the largest value.)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import torch


def errors(n):
    exact = torch.logspace(0, -12, n)
    W = torch.diag(exact)
    found = torch.linalg.svd(W)[1], torch.linalg.svdvals(W)
    return [((one - exact).abs() / exact).max().item() for one in found]


print("torch", torch.__version__)
for n in (25, 26, 64):
    with_vectors, values_alone = errors(n)
    print(f"{n} rows: relative error of sigma {with_vectors:.1e} with vectors, {values_alone:.1e} without")
assert errors(25) == [0, 0]
for n in (26, 64):
    with_vectors, values_alone = errors(n)
    assert with_vectors > 1e4 and values_alone < 1e-6, (n, with_vectors, values_alone)
print("as described")
PY
