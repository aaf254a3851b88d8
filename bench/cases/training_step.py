"""Forward, backward and step of a model of random weights: what each optimizer adds to AdamW's training step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from bench.optimizers import ADAMW, MUON, OURS, makers, work
from bench.run import DTYPES, Makers, Run, Target, Trial
from gsr_kernels.cli.floors import Work

# tokens of a step on a GPU and on a CPU; of one pass through the model, and of one of its sequences
TOKENS = (4096, 16384), (128, 256)
PASS, SEQUENCE = 4096, 2048


def rows(run: Run) -> Iterator[dict]:
    """Yield rows, of 16-bit weights and gradients on a GPU. Batches pass one by one and their gradients add up."""
    large = run.on_gpu or run.dry
    setting = replace(run.setting, gradient="bf16" if large else "fp32")
    run = replace(run, setting=setting, least=3)
    model = None if run.dry else _model(run)
    parameters = sum(d1 * d2 for d1, d2 in setting.model.matrices)
    parameters += setting.model.config.get("hidden_size", 0) * setting.model.config.get("vocab_size", 0)
    for tokens in TOKENS[0 if large else 1]:
        passes = Work(6 * parameters * tokens, 3 * setting.gradient_bytes * parameters, setting.unit)
        kernels = {name: [passes, *one] for name, one in work(setting, ADAMW, OURS, MUON).items()}
        labels = {**setting.labels, "tokens": tokens}
        target = {OURS: [Target(1.04 if setting.rank is None else 1.01, ADAMW)]} if tokens == 16384 else {}
        yield from run.compare(labels, kernels, lambda tokens=tokens: _variants(run, model, tokens), ADAMW, target)


def _model(run: Run) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**{"use_cache": False, **run.setting.model.config})
    with torch.device(run.device):
        return AutoModelForCausalLM.from_config(config, dtype=DTYPES[run.setting.gradient])


def _variants(run: Run, model: nn.Module, tokens: int) -> Makers:
    vocabulary = model.get_input_embeddings().num_embeddings
    at_once = min(tokens, PASS)
    shape = -(-at_once // SEQUENCE), min(at_once, SEQUENCE)
    batches = [torch.randint(vocabulary, shape, device=run.device) for _ in range(tokens // at_once)]
    made = makers(run, model)

    def of(name: str) -> Trial:
        optimizers = made[name]()

        def step() -> None:
            for batch in batches:
                (model(input_ids=batch, labels=batch).loss / len(batches)).backward()
            for optimizer in optimizers:
                optimizer.step()
            model.zero_grad()

        step()
        return Trial(step, launch="eager")

    return {name: partial(of, name) for name in (ADAMW, OURS, MUON)}
