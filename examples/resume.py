"""Stop at any step and go on as if nothing had happened; a kill at any moment leaves a checkpoint that loads.

python examples/resume.py --folder runs/resume --steps 20
python examples/resume.py --folder runs/resume --steps 40    # goes on from step 20
"""

import argparse
from pathlib import Path

import torch

import gsr_kernels
from gsr_kernels.io.atomic import replacing

parser = argparse.ArgumentParser()
parser.add_argument("--folder", type=Path, required=True)
parser.add_argument("--steps", type=int, default=20)
args = parser.parse_args()
args.folder.mkdir(parents=True, exist_ok=True)
file = args.folder / "checkpoint.pt"

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.GELU(), torch.nn.Linear(64, 16))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
# written at the first start and read at every other: one file a task
gsr_kernels.attach(model, optimizer, rho=0.5, bases=args.folder / "bases.safetensors")

parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
first = 0
if file.exists():
    saved = torch.load(file, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    first = saved["step"]

for step in range(first, args.steps):
    x = torch.randn(32, 16, generator=torch.Generator().manual_seed(step))
    loss = (model(x) - x.flip(1)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    scheduler.step()
    if (step + 1) % 10 == 0:
        with replacing(file) as partial:
            torch.save({name: part.state_dict() for name, part in parts.items()} | {"step": step + 1}, partial)
print(f"steps {first} to {args.steps}, loss {loss.item():.6f}")
