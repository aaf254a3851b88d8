"""Models that write: decoders, and encoder–decoders."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DataCollatorForSeq2Seq, GenerationConfig

from gsr_kernels.continual.evaluators import Answer
from gsr_kernels.continual.examples import Conversation, Example
from gsr_kernels.continual.kinds.base import IGNORED, Features, Kind, mean_loss
from gsr_kernels.continual.kinds.chat import encode, end_of_turn, render

# the end of a prompt has one part in so many of a row's tokens, however long the completion is
PROMPT_SHARE = 4


@dataclass
class Writer(Kind):
    """Kind that answers in text. With ``chat`` the prompt goes through the tokenizer's chat template."""

    asks = ("choice", "text", "loss")
    wants = "completion"

    chat: bool = False

    @abstractmethod
    def scored(self, model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return logits ``[rows, length, vocabulary]`` and labels ``[rows, length]``, from the first that counts on."""

    @abstractmethod
    def room(self, row: Example, new_tokens: int) -> int:
        """Return the positions that an answer of so many tokens needs."""

    @cached_property
    def end_of_turn(self) -> int | None:
        """Return the token that ends an answer by the chat template."""
        return end_of_turn(self.tokenizer)

    def collator(self, model: Any = None) -> Any:
        """See Kind.collator; labels are padded with ``IGNORED``."""
        return DataCollatorForSeq2Seq(self.tokenizer, model, padding=True, label_pad_token_id=IGNORED)

    @torch.no_grad()
    def answers(self, model: Any, rows: Sequence[Example], asked: str, new_tokens: int) -> list[Answer]:
        """See Kind.answers."""
        model.eval()
        if asked == "text":
            return self._texts(model, rows, new_tokens)
        if asked == "choice":
            return self._choices(model, rows)
        # of each completion the mean loss of its tokens, their number, and how many are predicted right
        return [(-total / max(1, count), count, right) for total, count, right in self._summed(model, rows)]

    def prompt_tokens(self, row: Example, room: int) -> list[int]:
        """Return the prompt's tokens, the last ``room`` of them."""
        if isinstance(row, Conversation):
            tokens = render(self.tokenizer, row.turns, ask=True, tokenize=True)
        # a held-out text is nobody's question
        elif self.chat and (row.prompt or not row.goes_on):
            tokens = render(self.tokenizer, [("user", row.prompt)], ask=True, tokenize=True)
        else:
            tokens = self.tokenizer(row.prompt)["input_ids"]
        if len(tokens) > room:
            self.truncated.add(row)
        return tokens[max(0, len(tokens) - max(0, room)) :]

    def _texts(self, model: Any, rows: Sequence[Example], new_tokens: int) -> list[str]:
        """Write greedily, one likeliest token after another, until the end of a text."""
        decodes = not model.config.is_encoder_decoder
        own = model.generation_config
        ends = [self.tokenizer.eos_token_id]
        chats = self.chat or any(isinstance(row, Conversation) for row in rows)
        if chats and self.end_of_turn is not None:
            ends.append(self.end_of_turn)
        # not as the checkpoint would have it: with beams, penalties, draws; generate falls back on the model's own
        model.generation_config = GenerationConfig(
            max_new_tokens=new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=ends,
            bos_token_id=own.bos_token_id,
            decoder_start_token_id=own.decoder_start_token_id,
            # a language, say: no habit of writing, but where an encoder–decoder's every text begins
            forced_bos_token_id=None if decodes else own.forced_bos_token_id,
        )

        def padded(prompts: list[Features]) -> Any:
            # to the left, so that what is written follows the prompt
            return self.tokenizer.pad(prompts, padding_side="left" if decodes else "right", return_tensors="pt")

        prompts = []
        for row in rows:
            # where nothing is asked there is padding alone
            tokens = self.prompt_tokens(row, self.max_tokens)
            mask = [1] * len(tokens) or [0]
            prompts.append({"input_ids": tokens or [self.tokenizer.pad_token_id], "attention_mask": mask})
        texts = [""] * len(rows)
        try:
            for indices, batch in self.batches(prompts, model.device, padded):
                written = model.generate(**batch)[:, batch["input_ids"].shape[1] if decodes else 0 :]
                # an end of a turn need not be a token that the tokenizer skips
                written = written.masked_fill(written == ends[-1], self.tokenizer.pad_token_id)
                for index, text in zip(indices, self.tokenizer.batch_decode(written, skip_special_tokens=True)):
                    texts[index] = text
        finally:
            model.generation_config = own
        return texts

    def _choices(self, model: Any, rows: Sequence[Example]) -> list[str]:
        """Choose the option of each row with the largest log-likelihood: of its tokens and its end, as trained."""
        asked = [Example(row.prompt, option) for row in rows for option in row.options]
        sums = iter([total for total, *_ in self._summed(model, asked)])
        chosen = []
        for row in rows:
            scores = [next(sums) for _ in row.options]
            chosen.append(row.options[scores.index(max(scores))])
        return chosen

    def _summed(self, model: Any, rows: Sequence[Example]) -> list[tuple[float, int, int]]:
        """Return the log-likelihood of each row's labels, their number, and how many are the likeliest."""
        found = [(0.0, 0, 0)] * len(rows)
        for indices, batch in self.batches([self.features(row) for row in rows], model.device, self.collator()):
            logits, labels = self.scored(model, batch)
            loss = F.cross_entropy(logits.float().mT, labels, ignore_index=IGNORED, reduction="none")
            counts = (labels != IGNORED).sum(-1).tolist()
            right = (logits.argmax(-1) == labels).sum(-1).tolist()
            for index, *sums in zip(indices, loss.double().sum(-1).tolist(), counts, right):
                found[index] = (-sums[0], *sums[1:])
        return found


class Causal(Writer):
    """Decoder, trained on the completion's tokens and the end of the text; the prompt is context alone."""

    name = "causal"
    auto = "AutoModelForCausalLM"

    def features(self, row: Example) -> Features:
        """See Kind.features."""
        if isinstance(row, Conversation):
            tokens, written = encode(self.tokenizer, row)
            if self.end_of_turn is None:
                # the template says nowhere that an answer ends
                tokens, written = [*tokens, self.tokenizer.eos_token_id], [*written, True]
            labels = [token if mark else IGNORED for token, mark in zip(tokens, written)]
            # where the last answer begins
            start = max((at for at in range(1, len(tokens)) if written[at] > written[at - 1]), default=0)
        else:
            end = [] if row.goes_on else [self.tokenizer.eos_token_id]
            prompt = self.prompt_tokens(row, sys.maxsize)
            start = len(prompt)
            tokens = prompt + self.tokenizer(row.completion, add_special_tokens=False)["input_ids"] + end
            labels = [IGNORED] * start + tokens[start:]
        # the completion leaves some room to the prompt's end, and is then cut without its own: nobody is taught to stop
        # in mid-sentence
        room = max(self.max_tokens - (len(tokens) - start), self.max_tokens // PROMPT_SHARE)
        first = max(0, start - room)
        if first:
            self.truncated.add(row)
        if len(tokens) - first > self.max_tokens:
            self.truncated_completions.add(row)
        kept = slice(first, first + self.max_tokens)
        tokens, labels = tokens[kept], labels[kept]
        # nothing foretells a text's first token: it is no label, and the Trainer shall not count it
        labels[:1] = [IGNORED]
        return {"input_ids": tokens, "attention_mask": [1] * len(tokens), "labels": labels}

    def prompt_tokens(self, row: Example, room: int) -> list[int]:
        """See Writer.prompt_tokens."""
        tokens = super().prompt_tokens(row, room)
        # some tokenizers end every text; the completion goes on
        while tokens and tokens[-1] == self.tokenizer.eos_token_id and tokens[-1] != self.tokenizer.bos_token_id:
            tokens = tokens[:-1]
        return tokens

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

    def room(self, row: Example, new_tokens: int) -> int:
        """See Writer.room: the answer follows the prompt."""
        return len(self.prompt_tokens(row, self.max_tokens)) + new_tokens


class Seq2Seq(Writer):
    """Encoder–decoder, trained on the completion's tokens and its end."""

    name = "seq2seq"
    auto = "AutoModelForSeq2SeqLM"

    def features(self, row: Example) -> Features:
        """See Kind.features."""
        if isinstance(row, Conversation):
            raise ValueError("turns of chat are for decoders: write an encoder–decoder's rows as prompt and completion")
        prompt = self.prompt_tokens(row, self.max_tokens)
        labels = self.tokenizer(text_target=row.completion)["input_ids"]
        if len(labels) > self.max_tokens:
            self.truncated_completions.add(row)
            # without its end, as a decoder
            labels = labels[: self.max_tokens]
        if row.goes_on and labels[-1] == self.tokenizer.eos_token_id:
            labels = labels[:-1]
        return {"input_ids": prompt, "attention_mask": [1] * len(prompt), "labels": labels}

    def scored(self, model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """See Writer.scored."""
        return model(**batch).logits, batch["labels"]

    def room(self, row: Example, new_tokens: int) -> int:
        """See Writer.room: the answer stands alone."""
        return new_tokens
