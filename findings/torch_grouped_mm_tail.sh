#!/usr/bin/env bash
# torch 2.13.0 on a CPU: torch.nn.functional.grouped_mm (the product of packed experts) leaves the rows behind the last
# offset unwritten: they hold what the memory held, not zeros. Its gradient with respect to those rows is unwritten too.
# Experts on several ranks, or rows sorted with a "no expert" mark at the end, have such rows. The weights' gradient is
# right. float32, bfloat16 and float16 are taken; float64 is refused, so that a float64 truth needs a loop.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$work/check.py" <<'PY'
import torch
from torch.nn.functional import grouped_mm

MARK = 12345.0


def soil(*shape):
    """Fill the memory that the next tensors of this size get."""
    held = [torch.full(shape, MARK) for _ in range(64)]
    del held


print("torch", torch.__version__)
torch.manual_seed(0)
rows, experts = torch.randn(10, 16, requires_grad=True), torch.randn(3, 16, 16, requires_grad=True)
offsets = torch.tensor([3, 3, 8], dtype=torch.int32)
soil(10, 16)
y = grouped_mm(rows, experts, offs=offsets)
right = torch.cat([rows[:3] @ experts[0], rows[3:8] @ experts[2]])
print("rows 0 to 7 differ from a loop by", (y[:8] - right).abs().max().item())
print("rows 8 and 9 hold", y[8:, :2].tolist())
torch.testing.assert_close(y[:8], right)
assert (y[8:] == MARK).any()

soil(10, 16)
(into_rows, into_experts) = torch.autograd.grad(y[:8].sum(), (rows, experts))
expected = torch.autograd.grad(right.sum(), (rows, experts))
torch.testing.assert_close(into_experts, expected[1])
torch.testing.assert_close(into_rows[:8], expected[0][:8])
print("the gradient of rows 8 and 9 holds", into_rows[8:, :2].tolist(), "where the loop has zeros")
assert not torch.equal(into_rows[8:], expected[0][8:])

try:
    grouped_mm(rows.double(), experts.double(), offs=offsets)
except RuntimeError as error:
    print("float64:", str(error).splitlines()[0])
    assert "Double" in str(error)
else:
    raise AssertionError("float64 is taken")
print("as described")
PY
cd "$work" && OMP_NUM_THREADS=1 venv/bin/python check.py
