"""Encoder–decoders: the prompt goes in, the completion comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from gsr_kernels.continual.examples import Example
from gsr_kernels.continual.kinds.base import Features, mean_loss
from gsr_kernels.continual.kinds.text import Writer


class Seq2Seq(Writer):
    """Trained on the completion's tokens and its end."""

    name = "seq2seq"
    auto = "AutoModelForSeq2SeqLM"

    def features(self, row: Example) -> Features:
        """See Kind.features."""
        prompt = self.prompt_tokens(row, self.max_tokens)
        labels = self.tokenizer(text_target=row.completion)["input_ids"]
        if len(labels) > self.max_tokens:
            self.truncated_completions.add(row.completion)
            # its end stays
            shorter = {"truncation": True, "max_length": self.max_tokens}
            labels = self.tokenizer(text_target=row.completion, **shorter)["input_ids"]
        if row.goes_on and labels[-1] == self.tokenizer.eos_token_id:
            labels = labels[:-1]
        return {"input_ids": prompt, "attention_mask": [1] * len(prompt), "labels": labels}

    def loss(self, model: Any) -> Callable[..., Tensor]:
        """See Kind.loss: of all tokens of a step."""
        return lambda outputs, labels, num_items_in_batch=None: mean_loss(outputs.logits, labels, num_items_in_batch)

    def scored(self, model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """See Writer.scored."""
        return model(**batch).logits, batch["labels"]

    def texts(self, model: Any, rows: Sequence[Example], new_tokens: int) -> list[str]:
        """See Writer.texts."""
        answers = [""] * len(rows)
        for indices, batch in self.batches(rows, [self.features(row) for row in rows], model.device):
            asked = {key: batch[key] for key in ("input_ids", "attention_mask")}
            written = self.greedy(model, new_tokens, **asked)
            for index, text in zip(indices, self.tokenizer.batch_decode(written, skip_special_tokens=True)):
                answers[index] = text
        return answers

    def room(self, row: Example, new_tokens: int) -> int:
        """See Writer.room: the answer stands alone."""
        return new_tokens
