"""Hugging Face's Trainer. A second call with --resume goes on from the last checkpoint.

python examples/hf_trainer.py --folder runs/hf
"""

import argparse

from tiny import rows, tiny_llama
from transformers import Trainer, TrainingArguments, default_data_collator

from gsr_kernels.integrations.transformers import attach_to

parser = argparse.ArgumentParser()
parser.add_argument("--folder", default="runs/hf")
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--resume", action="store_true")
args = parser.parse_args()

trainer = Trainer(
    model=tiny_llama(),
    args=TrainingArguments(
        args.folder,
        max_steps=args.steps,
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        weight_decay=0.01,
        lr_scheduler_type="constant",
        logging_steps=5,
        save_steps=10,
        report_to="tensorboard",
        use_cpu=True,
    ),
    train_dataset=rows(),
    data_collator=default_data_collator,
)
attach_to(trainer, rho=0.5, bases=f"{args.folder}-bases.safetensors")
trainer.train(resume_from_checkpoint=args.resume)
