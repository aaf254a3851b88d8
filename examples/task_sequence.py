"""A sequence of tasks, each with a Trainer of its own, and what each of them left of the ones before.

python examples/task_sequence.py --folder runs/sequence
"""

import argparse

import torch
from tiny import rows, tiny_llama
from transformers import Trainer, TrainingArguments, default_data_collator

from gsr_kernels.integrations.transformers import attach_to

parser = argparse.ArgumentParser()
parser.add_argument("--folder", default="runs/sequence")
args = parser.parse_args()


def reordered(row, task):
    """A task of its own: the same tokens in another order."""
    order = torch.randperm(16, generator=torch.Generator().manual_seed(task)).tolist()
    return {key: [tokens[place] for place in order] for key, tokens in row.items()}


model = tiny_llama()
tasks = [[reordered(row, task) for row in rows()] for task in range(3)]
for learned, data in enumerate(tasks):
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            f"{args.folder}/task-{learned}",
            max_steps=15,
            per_device_train_batch_size=16,
            learning_rate=3e-3,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
        ),
        train_dataset=data,
        data_collator=default_data_collator,
    )
    # a new Trainer begins a new task: the bases are those of the weights as the last one left them
    attach_to(trainer, rho=0.5)
    trainer.train()
    losses = [trainer.evaluate(past)["eval_loss"] for past in tasks[: learned + 1]]
    print(f"after task {learned}: " + ", ".join(f"{loss:.3f}" for loss in losses))
