"""DeepSpeed's ZeRO: flat shards of weights, gradients and moments; stop, and go on.

torchrun --nproc-per-node 2 examples/deepspeed_zero.py --folder runs/zero --stage 2 --steps 50
torchrun --nproc-per-node 2 examples/deepspeed_zero.py --folder runs/zero --stage 2 --steps 100    # goes on

On another number of processes, through DeepSpeed's universal checkpoint:
python -m deepspeed.checkpoint.ds_to_universal --inject_missing_state --input_folder runs/zero/global_step100 \
    --output_folder runs/zero/global_step100_universal
torchrun --nproc-per-node 4 examples/deepspeed_zero.py --folder runs/zero --stage 2 --steps 150 --universal
"""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
from tiny import rows, tiny_llama

gpu = torch.cuda.is_available()
os.environ.setdefault("DS_ACCELERATOR", "cuda" if gpu else "cpu")
import deepspeed  # noqa: E402

from gsr_kernels.integrations.deepspeed import attach  # noqa: E402

parser = argparse.ArgumentParser()
parser.add_argument("--folder", type=Path, required=True)
parser.add_argument("--stage", type=int, default=2, choices=[1, 2, 3])
parser.add_argument("--steps", type=int, default=50)
parser.add_argument("--universal", action="store_true")
args = parser.parse_args()
args.folder.mkdir(parents=True, exist_ok=True)
dist.init_process_group("nccl" if gpu else "gloo")
rank, world = dist.get_rank(), dist.get_world_size()

model = tiny_llama()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
config = {
    "train_micro_batch_size_per_gpu": 16 // world,
    "gradient_clipping": 1.0,
    # the weights that layers compute with; what is stepped stays in float32
    "bf16": {"enabled": gpu},
    "zero_optimization": {"stage": args.stage},
    "zero_allow_untested_optimizer": True,
    "checkpoint": {"load_universal": args.universal},
}
engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
# a directory, written at the first start and read at every other: one a task. "keep" sums one number a direction
handle = attach(engine, rho=0.5, out_of_span="keep", bases=args.folder / "bases")
if (args.folder / "latest").exists():
    # what save_checkpoint() kept of the method comes back with the rest
    engine.load_checkpoint(args.folder)

tokens = torch.tensor([row["input_ids"] for row in rows(64)], device=engine.device)
for step in range(engine.global_steps, args.steps):
    batch = tokens[torch.randperm(64, generator=torch.Generator().manual_seed(step))[:16]]
    own = batch.chunk(world)[rank]
    loss = engine(input_ids=own, labels=own).loss
    engine.backward(loss)
    engine.step()
    mean = loss.detach() / world
    dist.all_reduce(mean)
    if rank == 0:
        print(f"step {step} loss {mean.item():.9f}", flush=True)
engine.save_checkpoint(args.folder)
dist.destroy_process_group()
