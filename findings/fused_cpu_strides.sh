#!/usr/bin/env bash
# torch 2.13.0: the fused SGD, Adagrad, Adam and AdamW on a CPU walk through a weight and its gradient by their place in
# memory, not by index. A gradient of the weight's shape in another order, as (x.T @ d).T of a linear layer is, steps the
# wrong elements. Nothing is said, and no norm shows it. A foreach or plain step takes the same gradient right. backward()
# lays a gradient out like its weight, so that those are hit that somebody else has put into .grad.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$work/check.py" <<'PY'
import torch

torch.manual_seed(0)
x, d, W = torch.randn(16, 3), torch.randn(16, 2), torch.randn(2, 3)


def stepped(kind, gradient, **settings):
    weight = torch.nn.Parameter(W.clone())
    weight.grad = gradient
    kind([weight], lr=0.1, **settings).step()
    return weight.detach()


by_hand = (x.T @ d).T
assert by_hand.shape == W.shape and by_hand.stride() == (1, 2) and W.stride() == (3, 1)
print("torch", torch.__version__)
for kind in (torch.optim.SGD, torch.optim.Adagrad, torch.optim.Adam, torch.optim.AdamW):
    right = stepped(kind, by_hand, foreach=False)
    for way in ({"foreach": True}, {"fused": True}):
        ordered = (stepped(kind, by_hand.contiguous(), **way) - right).abs().max().item()
        as_given = (stepped(kind, by_hand, **way) - right).abs().max().item()
        print(f"{kind.__name__:8s}{way} off by {ordered:.1e} with the gradient in the weight's order, {as_given:.1e} in its own")
        assert ordered < 1e-6
        assert as_given > 0.1 if "fused" in way else as_given < 1e-6
    if kind is torch.optim.SGD:
        # element k in memory of the weight is moved by element k in memory of the gradient
        in_memory = W - 0.1 * by_hand.T.reshape(2, 3)
        torch.testing.assert_close(stepped(kind, by_hand, fused=True), in_memory)
print("as described")
PY
cd "$work" && OMP_NUM_THREADS=1 venv/bin/python check.py
