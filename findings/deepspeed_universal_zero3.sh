#!/usr/bin/env bash
# deepspeed 0.19.8: ZeRO 3 loads a universal checkpoint so that all groups of parameters (and sub-groups, of one large
# group) share one tensor for AdamW's count of steps. torch adds to it in place, once for each of them: with two groups
# the next step is counted as two, and the moments are corrected for steps that were not taken. All groups also get the
# settings of the first: a weight decay of 0 is lost. Nothing is said. ZeRO 1 and 2 do neither.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 deepspeed==0.19.8
cat > "$work/check.py" <<'PY'
import os
import subprocess
import sys

os.environ |= {"DS_ACCELERATOR": "cpu", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1"}
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
import deepspeed
import torch
import torch.distributed as dist

folder = sys.argv[1]
dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", 1), rank=0, world_size=1)
# nothing is compiled to speed up messages inside one machine
deepspeed.ops.__compatible_ops__ = {}


def begin(stage, **more):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    groups = [{"params": [model.weight], "weight_decay": 0.1}, {"params": [model.bias], "weight_decay": 0.0}]
    config = {"train_micro_batch_size_per_gpu": 2, "zero_optimization": {"stage": stage}, **more}
    config["zero_allow_untested_optimizer"] = True
    return deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(groups, 0.1), config=config)[0]


def step(engine):
    engine.backward(engine(torch.ones(2, 4)).sum())
    engine.step()
    inner = engine.optimizer.optimizer
    counts = [int(state["step"]) for state in inner.state.values()]
    return counts, [group["weight_decay"] for group in inner.param_groups]


for stage, after in ((2, ([2, 2], [0.1, 0.0])), (3, ([3, 3], [0.1, 0.1]))):
    path, engine = f"{folder}/{stage}", begin(stage)
    step(engine)
    engine.save_checkpoint(path)
    expected = step(engine)
    assert expected == ([2, 2], [0.1, 0.0])
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    folders = ["--input_folder", f"{path}/global_step1", "--output_folder", f"{path}/global_step1_universal"]
    subprocess.run([*command, *folders], check=True, stdout=subprocess.DEVNULL)
    other = begin(stage, checkpoint={"load_universal": True})
    other.load_checkpoint(path)
    found = step(other)
    print(f"ZeRO {stage}: steps and weight decays after the second step", expected, "resumed", found)
    assert found == after, found
print("deepspeed", deepspeed.__version__, "as described")
PY
cd "$work" && OMP_NUM_THREADS=1 venv/bin/python check.py "$work" 2> errors || { cat errors; exit 1; }
