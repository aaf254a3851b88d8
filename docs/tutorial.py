# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Tutorial: two tasks, one after the other
#
# A tiny language model learns to count upwards, then to count downwards. We see what it forgets, put a method in
# front of the optimizer, look at what the method does, then stop in the middle and go on. Everything runs on a CPU in
# less than a minute. It needs `pip install '.[plot]' transformers`.
#
# ## A model and two tasks
#
# The model is a Llama with two layers and random weights. A row of the first task is 16 numbers that go up by one, a
# row of the second 16 numbers that go down.

# %%
import copy

import torch
from matplotlib import pyplot as plt
from transformers import LlamaConfig, LlamaForCausalLM

from gsr_kernels import PSP, attach, plot

torch.manual_seed(0)
shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
model = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, **shape))

start = torch.arange(16, 48)
up, down = (start[:, None] + sign * torch.arange(16) for sign in (1, -1))


def loss_of(model, rows):
    return model(input_ids=rows, labels=rows).loss


# %% [markdown]
# ## Learn the first task
#
# A plain loop and AdamW. On the way it notes the loss on both tasks.


# %%
def train(model, optimizer, rows, steps):
    """Take some steps on one task; return the loss on both tasks after each fifth."""
    seen = []
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(model, rows).backward()
        optimizer.step()
        if step % 5 == 4:
            with torch.no_grad():
                seen.append([loss_of(model, task).item() for task in (up, down)])
    return torch.tensor(seen)


first = train(model, torch.optim.AdamW(model.parameters(), lr=3e-3), up, 100)
print(f"loss on counting up: {first[-1, 0]:.2f}, on counting down: {first[-1, 1]:.2f}")

# %% [markdown]
# ## Attach a method for the second task
#
# `attach` takes the singular value decomposition of every linear weight: $W = U\, \mathrm{diag}(\sigma)\, V^T$. From
# then on `optimizer.step()` sees the gradients as the method changes them. `rho=0.5` asks for [Gradient Spectrum
# Rescaling](methods.md#gsr). `print(handle)` lists what is covered.

# %%
learned = copy.deepcopy(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
handle = attach(model, optimizer, rho=0.5, record_every=1)
print(handle)

# %% [markdown]
# Now the second task, as before. For comparison two copies of the model learn it too: one with plain AdamW, one with
# [PSP](methods.md#psp), which trains the minor directions alone.

# %%
before = handle.bases
runs = {"GSR": train(model, optimizer, down, 60)}

for name, method in {"plain AdamW": None, "PSP": PSP(k=0.4)}.items():
    other = copy.deepcopy(learned)
    steps = torch.optim.AdamW(other.parameters(), lr=3e-3)
    if method:
        attach(other, steps, method)
    runs[name] = train(other, steps, down, 60)

figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained", sharey=True)
for axis, task, title in zip(axes, (0, 1), ("counting up (the first task)", "counting down (the second)")):
    for name, seen in runs.items():
        axis.plot(range(5, 61, 5), seen[:, task], label=name)
    axis.set(title=title, xlabel="step of the second task", ylabel="loss")
_ = axes[0].legend()

# %% [markdown]
# The left picture is what is forgotten, the right one what is learned. A method that forgets less may only have
# learned less: look at both. This is one seed and one learning rate. It shows how to look, not which method is
# better. For that read [the evidence](evidence.md), and tune the rate of each method alike.
#
# ## Look at the weights
#
# Singular values before the task and after it. `refresh()` takes the decompositions anew, as the next task would want
# them.

# %%
handle.refresh()
names = [name for name in before if "layers.1.mlp" in name]
figure, _ = plot.spectra({name: before[name] for name in names}, {name: handle.bases[name] for name in names})
figure

# %% [markdown]
# Where the energy of the last gradients was: on the diagonal that GSR rescales, elsewhere in the span of the basis,
# or outside it. GSR moves the first share alone. `"drop"`, the default of whole bases, loses the last one.

# %%
optimizer.zero_grad()
loss_of(model, down).backward()
optimizer.step()
figure, _ = plot.energy(handle.metrics())
figure

# %% [markdown]
# A square weight has nothing outside the span, a rectangular one has. `handle.scalars()` gives the same for the whole
# model, for any logger.

# %%
for name, value in handle.scalars().items():
    print(f"{name:26} {value:.4g}")

# %% [markdown]
# ## Stop and go on
#
# The bases go to a file, the rest is in the optimizer's checkpoint. A new process builds model and optimizer,
# attaches with the same file and loads both. Here we let the old model go on as well, and compare.

# %%
handle.save_bases("task-2.safetensors")
torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, "checkpoint.pt")

resumed = LlamaForCausalLM(model.config)
new_optimizer = torch.optim.AdamW(resumed.parameters(), lr=3e-3)
attach(resumed, new_optimizer, rho=0.5, record_every=1, bases="task-2.safetensors")
saved = torch.load("checkpoint.pt")
resumed.load_state_dict(saved["model"])
new_optimizer.load_state_dict(saved["optimizer"])

train(model, optimizer, down, 10)
train(resumed, new_optimizer, down, 10)
same = all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters()))
print("the same to the last bit:", same)

# %% [markdown]
# ## Take it off
#
# `handle.remove()` leaves the optimizer as if the method had never been there.

# %%
handle.remove()

# %% [markdown]
# Next: [your trainer](trainers/transformers.md), [what to choose](choosing.md), [your own tasks by one
# command](trainers/own_tasks.md).
