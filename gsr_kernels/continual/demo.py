"""Demo: a small model, built and pretrained here, and five tasks from the text that every Python carries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gsr_kernels.continual import library
from gsr_kernels.continual.examples import Example, Source
from gsr_kernels.continual.kinds import Kind
from gsr_kernels.continual.learn import learn
from gsr_kernels.continual.models import save
from gsr_kernels.continual.ranks import on_rank0
from gsr_kernels.continual.readers import Read, choose
from gsr_kernels.continual.run_state import keep_whole
from gsr_kernels.continual.settings import DemoSettings, RunSettings

CAUTION = "One small model on the text of one machine: it shows the methods at work, it is no evidence on large models."
# what every token of is predicted, before the first task and after each
METRIC = "tokens"
# no task's row has them
PADDING, END = "<|pad|>", "<|end|>"


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer whose tokens are the 256 bytes, padding and the end of a text."""
    tokens = [PADDING, END, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    raw = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token=PADDING, eos_token=END, model_input_names=["input_ids", "attention_mask"]
    )


def config(size: DemoSettings, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """Return the configuration of the model, whose weights are square, wide and tall."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.width,
        intermediate_size=8 * size.width // 3,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        initializer_range=size.width**-0.5,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )


def general() -> Source:
    """Return the text that the model is pretrained on, in windows without a prompt; some are kept for the score."""
    rows = tuple(Example("", text.decode(errors="replace"), goes_on=True) for _, text in library.general())
    return Source("general", "documentation prose, which the model was pretrained on", rows, metric=METRIC)


def tasks(order: str | None) -> Read:
    """Return the five tasks; ValueError for an unknown order, or a Python without the sources of its library."""
    if not all(library.rows(name) for name in library.SOURCES):
        raise ValueError("this Python carries no library sources to make tasks from: bring your own with --data")
    names, _ = choose(tuple(library.SOURCES), order, False)
    return Read(tuple(_task(name) for name in names))


def _task(name: str) -> Source:
    rows = (Example(f"{prompt.decode()}\n", text.decode()) for prompt, text in library.rows(name))
    about = (library.SOURCES[name].__doc__ or "").rstrip(".")
    return Source(name, about, tuple(dict.fromkeys(rows)))


def pretrain(
    kind: Kind,
    settings: RunSettings,
    rows: Sequence[Example],
    seed: int,
    folder: Path,
    tick: Callable[[int, bool], object],
) -> None:
    """Train the model that all methods of a seed start from, unless it is there; see ``learn`` for ``tick``."""
    size: Any = settings.demo
    if on_rank0(folder.is_dir):
        tick(size.pretrain_steps, True)
        return
    torch.manual_seed(seed)
    tokenizer: Any = kind.tokenizer
    model: Any = LlamaForCausalLM(config(size, tokenizer))
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    plain = replace(settings, steps=size.pretrain_steps, lr=size.pretrain_lr, fsdp=False, log=None)
    learn(kind, model, rows, plain, lambda trainer, folder: None, folder.with_name("pretraining"), seed, tick)
    keep_whole(folder, lambda partial: save(kind, model, partial))
