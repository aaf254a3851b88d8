"""Models that write: what decoders and encoder–decoders have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DataCollatorForSeq2Seq, GenerationConfig

from gsr_kernels.continual.evaluators import Answer
from gsr_kernels.continual.examples import Example
from gsr_kernels.continual.kinds.base import IGNORED, Kind


@dataclass
class Writer(Kind):
    """A kind that answers in text.

    Args:
        chat: the prompt goes through the tokenizer's chat template.
    """

    asks = ("choice", "text", "loss")

    chat: bool = False

    @abstractmethod
    def scored(self, model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits ``[rows, length, vocabulary]`` and the labels ``[rows, length]`` of each, or ``IGNORED``; what comes
        before the first label of all rows may be lacking.
        """

    @abstractmethod
    def texts(self, model: Any, rows: Sequence[Example], new_tokens: int) -> list[str]:
        """Greedy answers of at most so many tokens."""

    @abstractmethod
    def room(self, row: Example, new_tokens: int) -> int:
        """The positions that an answer of so many tokens needs."""

    def greedy(self, model: Any, new_tokens: int, **asked: Tensor) -> Tensor:
        """What the model writes, one likeliest token after another, until its end."""
        own = model.generation_config
        # not as the checkpoint would have it: with beams, penalties, draws; generate falls back on the model's own
        model.generation_config = GenerationConfig(
            max_new_tokens=new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            bos_token_id=own.bos_token_id,
            decoder_start_token_id=own.decoder_start_token_id,
            # a language, say: no habit of writing, but where an encoder–decoder's every text begins
            forced_bos_token_id=own.forced_bos_token_id if model.config.is_encoder_decoder else None,
        )
        try:
            return model.generate(**asked)
        finally:
            model.generation_config = own

    def collator(self, model: Any = None) -> Any:
        """See Kind.collator; labels are padded with ``IGNORED``."""
        return DataCollatorForSeq2Seq(self.tokenizer, model, padding=True, label_pad_token_id=IGNORED)

    @torch.no_grad()
    def answers(self, model: Any, rows: Sequence[Example], asked: str, new_tokens: int) -> list[Answer]:
        """See Kind.answers."""
        model.eval()
        if asked == "text":
            return self.texts(model, rows, new_tokens)
        return self._choices(model, rows) if asked == "choice" else self._losses(model, rows)

    def prompt_tokens(self, row: Example, room: int) -> list[int]:
        """The prompt's tokens, the last ``room`` of them."""
        # a held-out text is nobody's question
        if self.chat and (row.prompt or not row.goes_on):
            tokens = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": row.prompt}], add_generation_prompt=True, return_dict=False
            )
        else:
            tokens = self.tokenizer(row.prompt)["input_ids"]
        if len(tokens) > room:
            self.truncated.add(row.prompt)
        return tokens[max(0, len(tokens) - max(0, room)) :]

    def completion_tokens(self, row: Example, room: int) -> list[int]:
        """The completion's tokens, the first ``room`` of them."""
        tokens = self.tokenizer(row.completion, add_special_tokens=False)["input_ids"]
        if len(tokens) > room:
            self.truncated_completions.add(row.completion)
        return tokens[: max(0, room)]

    def _choices(self, model: Any, rows: Sequence[Example]) -> list[str]:
        """The option of each row with the largest log-likelihood: the sum over its tokens and its end, as trained."""
        asked = [Example(row.prompt, option) for row in rows for option in row.options]
        sums = iter([total for total, *_ in self._summed(model, asked)])
        chosen = []
        for row in rows:
            scores = [next(sums) for _ in row.options]
            chosen.append(row.options[scores.index(max(scores))])
        return chosen

    def _losses(self, model: Any, rows: Sequence[Example]) -> list[tuple[float, int, int]]:
        """Return the mean loss of each completion's tokens, their number, and how many are predicted right."""
        return [(-total / max(1, count), count, right) for total, count, right in self._summed(model, rows)]

    def _summed(self, model: Any, rows: Sequence[Example]) -> list[tuple[float, int, int]]:
        """Return the log-likelihood of each row's labels, their number, and how many are the likeliest."""
        found = [(0.0, 0, 0)] * len(rows)
        for indices, batch in self.batches(rows, [self.features(row) for row in rows], model.device):
            logits, labels = self.scored(model, batch)
            loss = F.cross_entropy(logits.float().mT, labels, ignore_index=IGNORED, reduction="none")
            counts = (labels != IGNORED).sum(-1).tolist()
            right = (logits.argmax(-1) == labels).sum(-1).tolist()
            for index, *sums in zip(indices, loss.double().sum(-1).tolist(), counts, right):
                found[index] = (-sums[0], *sums[1:])
        return found
