"""A training loop of your own: two tasks, one after the other.

python examples/plain.py
"""

import torch

import gsr_kernels

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.GELU(), torch.nn.Linear(64, 16))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
handle = gsr_kernels.attach(model, optimizer, rho=0.5, record_every=10)
print(handle)

for task in range(2):
    if task:
        # the next task protects what the weights hold by now
        handle.refresh()
    teacher = torch.randn(16, 16)
    for _ in range(50):
        x = torch.randn(32, 16)
        loss = torch.nn.functional.mse_loss(model(x), x @ teacher)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    scalars = {name: round(value, 3) for name, value in handle.scalars().items()}
    print(f"task {task}: loss {loss.item():.3f}, {scalars}")
