"""The beginning of the language study: the text, a model pretrained on it, and the tasks."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.studies import language_text
from bench.studies.language_text import MANUALS, Text
from gsr_kernels.continual import library
from gsr_kernels.continual.examples import split

# rows of a task; one in so many is for choosing rates alone
ROWS, TUNING_SHARE = 4000, 4
CONDITIONS = "conditions.json"


@dataclass(frozen=True)
class Size:
    """The size of the model, of its pretraining and of a task.

    `tokens` are those of a pretraining row, `steps` those of a task; `quota` and `held_out` are characters a language.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    tokens: int
    batch: int
    lr: float
    pretrain_steps: int
    steps: int
    quota: int
    held_out: int


# 1.5 million parameters for one core, about 120 million for one GPU
SIZES = {
    "small": Size(4096, 128, 4, 4, 128, 16, 3e-3, 2000, 60, 700_000, 1500),
    "large": Size(16384, 768, 12, 12, 512, 128, 6e-4, 1000, 400, 4_000_000, 5000),
}


def prepare(work: Path, size: Size, manuals: Path = MANUALS) -> None:
    """Write `model`, `study`, `tune`, `held-out.txt` and, last, `conditions.json`.

    Raises FileExistsError for a folder in use.
    """
    if (work / CONDITIONS).exists():
        raise FileExistsError(f"--work {work} is prepared already: give another folder")
    found = language_text.gather(size.quota, size.held_out, manuals)
    work.mkdir(parents=True, exist_ok=True)
    held_out = [page for pages in found.held_out.values() for page in pages]
    (work / "held-out.txt").write_text("\n\n".join(held_out), encoding="utf-8")
    model = pretrain(found, size, work / "model")
    rows = {name: write_rows(work, name) for name in library.SOURCES}
    conditions = {"size": asdict(size), "text": described(found), "model": model, "rows": rows}
    (work / CONDITIONS).write_text(json.dumps(conditions, indent=1) + "\n", encoding="utf-8")


def described(found: Text) -> dict[str, dict[str, int]]:
    """Return, by language, the characters learned, those and the pages kept apart, and the share told."""
    told = found.told()
    return {
        language: {
            "learned": len(learned),
            "held out": sum(map(len, found.held_out.get(language, ()))),
            "pages": len(found.held_out.get(language, ())),
            "told": told.get(language, 0),
        }
        for language, learned in found.training.items()
    }


def write_rows(work: Path, name: str) -> dict[str, int]:
    """Write the rows of a task, those for choosing rates apart, and return how many there are of each."""
    rows = split(library.rows(name), 0)[0][:ROWS]
    apart = set(rows[::TUNING_SHARE])
    counts = {}
    for part in ("tune", "study"):
        kept = [row for row in rows if (row in apart) == (part == "tune")]
        lines = [json.dumps({"prompt": f"{row[0].decode()}\n", "completion": row[1].decode()}) for row in kept]
        (work / part).mkdir(exist_ok=True)
        (work / part / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        counts[part] = len(kept)
    return counts


def pretrain(found: Text, size: Size, folder: Path) -> dict[str, Any]:
    """Train a Llama of this size with a byte-level tokenizer; return its size and its training."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer, TrainingArguments

    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    # digit by digit, so that the model can reckon
    digits, signs = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.Sequence([digits, signs]), decoders.ByteLevel()
    learner = trainers.BpeTrainer(
        vocab_size=size.vocabulary,
        special_tokens=list(special.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    everything = list(found.training.values())
    raw.train_from_iterator((part for each in everything for part in each.split("\n\n")), learner)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **special)
    tokens = torch.tensor([token for each in everything for token in tokenizer(each)["input_ids"]])
    rows = tokens[: len(tokens) // size.tokens * size.tokens].view(-1, size.tokens)
    torch.manual_seed(0)
    shape = {"hidden_size": size.width, "intermediate_size": 4 * size.width, "num_hidden_layers": size.layers}
    heads = {"num_attention_heads": size.heads, "num_key_value_heads": max(1, size.heads // 2)}
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, **shape, **heads, **ends))
    arguments = TrainingArguments(
        str(folder.with_name("pretraining")),
        per_device_train_batch_size=size.batch,
        max_steps=size.pretrain_steps,
        learning_rate=size.lr,
        warmup_steps=size.pretrain_steps // 20,
        lr_scheduler_type="cosine",
        bf16=True,
        save_strategy="no",
        logging_steps=max(1, size.pretrain_steps // 20),
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
        "tokens trained on": size.pretrain_steps * size.batch * size.tokens,
        "last loss": losses[-1] if losses else None,
    }
