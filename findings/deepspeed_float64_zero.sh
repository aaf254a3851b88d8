#!/usr/bin/env bash
# deepspeed 0.19.8: ZeRO 1 and 2 train a float64 model in float32. The weights stay tensors of float64, and outputs and
# losses are float64 too. But the first step, even at rate 0, rounds every weight to float32, and a step below float32's
# rounding moves nothing. Nothing is said. Stage 0 and ZeRO 3 refuse such a model with an AssertionError.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 deepspeed==0.19.8
cat > "$work/check.py" <<'PY'
import os
import sys

os.environ |= {"DS_ACCELERATOR": "cpu", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1"}
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
import deepspeed
import torch
import torch.distributed as dist

dist.init_process_group("gloo", store=dist.FileStore(f"{sys.argv[1]}/store", 1), rank=0, world_size=1)
# nothing is compiled to speed up messages inside one machine
deepspeed.ops.__compatible_ops__ = {}


def stepped(stage, rate, value):
    """The weight after a step, of a layer whose weight was one value and whose gradient is 1."""
    model = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    torch.nn.init.constant_(model.weight, value)
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": stage}}
    config["zero_allow_untested_optimizer"] = True
    optimizer = torch.optim.SGD(model.parameters(), rate)
    engine = deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]
    found = engine(torch.ones(1, 1, dtype=torch.float64))
    engine.backward(found.sum())
    engine.step()
    assert found.dtype == model.weight.dtype == torch.float64
    return model.weight.item()


print("deepspeed", deepspeed.__version__, "torch", torch.__version__)
for stage in (1, 2):
    still, small = stepped(stage, 0.0, 0.1), stepped(stage, 1e-9, 1.0)
    print(f"ZeRO {stage}: 0.1 after a step at rate 0 is {still}; 1 after one of 1e-9 is {small}")
    assert still == torch.tensor(0.1, dtype=torch.float32).item() != 0.1 and small == 1.0
for stage in (0, 3):
    try:
        stepped(stage, 0.0, 0.1)
    except AssertionError as error:
        print(f"stage {stage}: AssertionError: {error}")
    else:
        raise SystemExit(f"stage {stage} takes float64")
print("as described")
PY
cd "$work" && OMP_NUM_THREADS=1 venv/bin/python check.py "$work" 2> errors || { cat errors; exit 1; }
