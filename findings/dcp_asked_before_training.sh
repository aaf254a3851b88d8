#!/usr/bin/env bash
# torch 2.13.0: get_optimizer_state_dict of torch.distributed.checkpoint, asked of a new optimizer, changes the training that
# follows. It fills the state by a step with zero gradients at rate 0. No weight moves, but the optimizer has counted a step
# and kept what it saw. Under a gradient of 1 at rate 0.1 Adam and AdamW first move a weight by 0.0744 in place of 0.1, RAdam
# and Adamax by 0.0526. SGD with momentum 0.9 and dampening 0.9 moves by 0.01. ASGD does not move in its first step. Rprop
# keeps the rate of 0 as its step and moves by 1e-6. SGD without dampening, Adagrad and RMSprop train as if nobody had asked.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$work/check.py" <<'PY'
import warnings

import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

warnings.filterwarnings("ignore", "torch.distributed is disabled")


def first_move(kind, asked, **settings):
    """How far the first step takes a weight whose gradient is 1."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    optimizer = kind(model.parameters(), lr=0.1, **settings)
    if asked:
        get_optimizer_state_dict(model, optimizer)
        assert not model.weight.any()
    model.weight.grad = torch.ones_like(model.weight)
    optimizer.step()
    return -model.weight.item()


print("torch", torch.__version__)
optim = torch.optim
for kind, settings, plain, after in (
    (optim.Adam, {}, 0.1, 0.0744),
    (optim.AdamW, {}, 0.1, 0.0744),
    (optim.RAdam, {}, 0.1, 0.0526),
    (optim.Adamax, {}, 0.1, 0.0526),
    (optim.ASGD, {}, 0.1, 0.0),
    (optim.Rprop, {}, 0.1, 1e-6),
    (optim.SGD, {"momentum": 0.9, "dampening": 0.9}, 0.1, 0.01),
    (optim.SGD, {"momentum": 0.9}, 0.1, 0.1),
    (optim.Adagrad, {}, 0.1, 0.1),
    (optim.RMSprop, {}, 1.0, 1.0),
):
    found = first_move(kind, False, **settings), first_move(kind, True, **settings)
    print(f"{kind.__name__:8s} {settings} first moves {found[0]:.4g}, asked before {found[1]:.4g}")
    for got, wanted in zip(found, (plain, after)):
        assert abs(got - wanted) <= 1e-3 * wanted, (kind, got, wanted)
print("as described")
PY
cd "$work" && OMP_NUM_THREADS=1 venv/bin/python check.py
