"""Decoders: the completion follows the prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gsr_kernels.continual.examples import Example
from gsr_kernels.continual.kinds.base import IGNORED, Features, mean_loss
from gsr_kernels.continual.kinds.text import Writer


class Causal(Writer):
    """Trained on the completion's tokens and the end of the text; the prompt is context alone."""

    name = "causal"
    auto = "AutoModelForCausalLM"

    def features(self, row: Example) -> Features:
        """See Kind.features."""
        end = [] if row.goes_on else [self.tokenizer.eos_token_id]
        completion = [*self.completion_tokens(row, self.max_tokens - len(end)), *end]
        prompt = self._prompt(row, self.max_tokens - len(completion))
        tokens = prompt + completion
        labels = [IGNORED] * len(prompt) + completion
        # nothing foretells a text's first token: it is no label, and the Trainer shall not count it
        labels[:1] = [IGNORED]
        return {"input_ids": tokens, "attention_mask": [1] * len(tokens), "labels": labels}

    def loss(self, model: Any) -> Callable[..., Tensor]:
        """See Kind.loss: of the next tokens; and the routers' of a mixture of experts, where its configuration asks for
        it, of each micro-batch by its share of the step's labels.
        """
        weight = getattr(model, "router_aux_loss_coef", getattr(model, "aux_loss_coef", None))

        def shifted(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
            following = F.pad(labels, (0, 1), value=IGNORED)[:, 1:]
            loss = mean_loss(outputs.logits, following, num_items_in_batch)
            routers = getattr(outputs, "aux_loss", None)
            if routers is None or weight is None:
                return loss
            count = (following != IGNORED).sum()
            share = 1 if num_items_in_batch is None else count / max(num_items_in_batch, 1)
            return loss + weight * share * routers.to(loss.device)

        return shifted

    def scored(self, model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """See Writer.scored; a text's first token is no label."""
        # of the prompts that all rows begin with no logits are wanted, and most models can leave them out
        labelled = (batch["labels"] != IGNORED).any(0)
        first = max(1, int(labelled.int().argmax()))
        kept = len(labelled) - first + 1
        some = {"logits_to_keep": kept} if "logits_to_keep" in signature(model.forward).parameters else {}
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **some).logits
        return logits[:, -kept:-1], batch["labels"][:, first:]

    def texts(self, model: Any, rows: Sequence[Example], new_tokens: int) -> list[str]:
        """See Writer.texts."""
        asked = [self._prompt(row, self.max_tokens) for row in rows]
        answers = [""] * len(rows)
        order = sorted(range(len(rows)), key=lambda index: len(asked[index]))
        for start in range(0, len(order), self.batch):
            indices = order[start : start + self.batch]
            longest = max(1, *(len(asked[index]) for index in indices))
            # to the left, so that what is written follows the prompt
            padding = [longest - len(asked[index]) for index in indices]
            tokens = [[self.tokenizer.pad_token_id] * pad + asked[index] for pad, index in zip(padding, indices)]
            mask = [[0] * pad + [1] * (longest - pad) for pad in padding]
            written = self.greedy(
                model,
                new_tokens,
                input_ids=torch.tensor(tokens, device=model.device),
                attention_mask=torch.tensor(mask, device=model.device),
            )
            for index, text in zip(
                indices, self.tokenizer.batch_decode(written[:, longest:], skip_special_tokens=True)
            ):
                answers[index] = text
            self.tick(len(indices))
        return answers

    def room(self, row: Example, new_tokens: int) -> int:
        """See Writer.room: the answer follows the prompt."""
        return len(self._prompt(row, self.max_tokens)) + new_tokens

    def _prompt(self, row: Example, room: int) -> list[int]:
        tokens = self.prompt_tokens(row, room)
        # some tokenizers end every text; the completion goes on
        while tokens and tokens[-1] == self.tokenizer.eos_token_id and tokens[-1] != self.tokenizer.bos_token_id:
            tokens = tokens[:-1]
        return tokens
