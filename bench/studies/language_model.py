"""The model of the language study, a Llama of 1.5 million parameters, pretrained here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

VOCABULARY = 4096
SHAPE = {
    "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "tie_word_embeddings": True,
}  # fmt: skip
# of pretraining
TOKENS, BATCH, LR, STEPS = 128, 16, 3e-3, 2000


def pretrain(texts: Sequence[str], folder: Path) -> dict[str, Any]:
    """Train the model with a byte-level tokenizer of these texts; return its size and its training."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer, TrainingArguments

    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    # digit by digit, so that the model can reckon
    digits, signs = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.Sequence([digits, signs]), decoders.ByteLevel()
    learner = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(special.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    raw.train_from_iterator((part for each in texts for part in each.split("\n\n")), learner)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **special)
    tokens = torch.tensor([token for each in texts for token in tokenizer(each)["input_ids"]])
    rows = tokens[: len(tokens) // TOKENS * TOKENS].view(-1, TOKENS)
    torch.manual_seed(0)
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **SHAPE, **ends))
    arguments = TrainingArguments(
        str(folder.with_name("pretraining")),
        per_device_train_batch_size=BATCH,
        max_steps=STEPS,
        learning_rate=LR,
        warmup_steps=STEPS // 20,
        lr_scheduler_type="cosine",
        bf16=True,
        save_strategy="no",
        logging_steps=max(1, STEPS // 20),
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = Trainer(model, arguments, train_dataset=[{"input_ids": row, "labels": row} for row in rows])
    trainer.train()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens of the text": len(tokens),
        "tokens trained on": STEPS * BATCH * TOKENS,
        "last loss": losses[-1] if losses else None,
    }
