"""Accelerate: a prepared optimizer and gradients accumulated over two batches.

python examples/accelerate_loop.py
"""

import torch
from accelerate import Accelerator
from tiny import rows, tiny_llama

import gsr_kernels

accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
model = tiny_llama()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
tokens = torch.tensor([row["input_ids"] for row in rows()])
model, optimizer, loader = accelerator.prepare(model, optimizer, torch.utils.data.DataLoader(tokens, batch_size=8))
# before prepare or after it, on the optimizer or on accelerate's wrapper of it
handle = gsr_kernels.attach(accelerator.unwrap_model(model), optimizer, rho=0.5)

for batch in loader:
    with accelerator.accumulate(model):
        loss = model(input_ids=batch, labels=batch).loss
        accelerator.backward(loss)
        if accelerator.sync_gradients:
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
print(f"loss {loss.item():.3f}; {len(loader)} batches, {handle.state_dict()['steps']} optimizer steps")
