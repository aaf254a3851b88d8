"""TRL's SFTTrainer, on tokens so that no tokenizer has to be downloaded.

python examples/trl_sft.py --folder runs/sft
"""

import argparse

from datasets import Dataset
from tiny import rows, tiny_llama
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from gsr_kernels.integrations.transformers import attach_to

parser = argparse.ArgumentParser()
parser.add_argument("--folder", default="runs/sft")
args = parser.parse_args()

words = Tokenizer(models.WordLevel({f"<{token}>": token for token in range(64)}, unk_token="<0>"))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<63>", pad_token="<0>")
trainer = SFTTrainer(
    model=tiny_llama(),
    args=SFTConfig(
        args.folder,
        max_steps=10,
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        logging_steps=5,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
    ),
    train_dataset=Dataset.from_list([{"input_ids": row["input_ids"]} for row in rows()]),
    processing_class=tokenizer,
)
attach_to(trainer, rho=0.5)
trainer.train()
