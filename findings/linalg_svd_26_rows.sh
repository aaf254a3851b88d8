#!/usr/bin/env bash
# torch 2.13.0 and scipy 1.17.1 on a CPU: torch.linalg.svd of a diagonal matrix whose entries fall from 1 to 1e-12 is exact
# up to 25 rows. From 26 rows on every singular value below the dtype's rounding of the largest is wrong, the smallest by
# tens of thousands of times its size. torch.linalg.svdvals of the same matrix is exact. So are scipy's driver gesvd and
# numpy, which computes float32 in float64; in float64 with entries down to 1e-30 numpy loses them from 26 rows as well.
# LAPACK's divide and conquer gives blocks of up to 25 rows to the QR iteration, whose small values are right: one row more
# and the method is another. A test with small matrices sees only the exact one.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 scipy==1.17.1
cat > "$work/check.py" <<'PY'
import numpy as np
import scipy
import torch

print("torch", torch.__version__, "numpy", np.__version__, "scipy", scipy.__version__)
WAYS = {
    "torch svd": lambda w: torch.linalg.svd(torch.from_numpy(w)).S.numpy(),
    "torch svdvals": lambda w: torch.linalg.svdvals(torch.from_numpy(w)).numpy(),
    "numpy svd": lambda w: np.linalg.svd(w)[1],
    "scipy gesdd": lambda w: scipy.linalg.svd(w, lapack_driver="gesdd")[1],
    "scipy gesvd": lambda w: scipy.linalg.svd(w, lapack_driver="gesvd")[1],
}
# the ways that lose small values, by dtype, and the smallest entry of the diagonal
LOSE = {
    "float32": (1e-12, {"torch svd", "scipy gesdd"}),
    "float64": (1e-30, {"torch svd", "numpy svd", "scipy gesdd"}),
}
for dtype, (least, losing) in LOSE.items():
    for rows in (25, 26):
        diagonal = np.geomspace(1, least, rows).astype(dtype)
        for name, way in WAYS.items():
            error = (abs(way(np.diag(diagonal)) - diagonal) / diagonal).max()
            print(f"{dtype}, {rows} rows, {name:<14} largest relative error {error:.1e}")
            if rows == 26 and name in losing:
                assert error > 1000
            else:
                assert error < 1e-5
print("as described")
PY
cd "$work" && OMP_NUM_THREADS=1 venv/bin/python check.py
