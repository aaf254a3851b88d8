"""Plan of a run: its rows as the model will see them, before any weight is read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from gsr_kernels.continual.examples import Example, Source
from gsr_kernels.continual.kinds import Kind
from gsr_kernels.continual.ranks import first

WAY_OUT = "see that --model's folder holds the tokenizer of its weights (tokenizer.json)"


@dataclass(frozen=True)
class Cut:
    """Rows of a task, of all seeds, and of these the ones whose prompt or completion does not fit."""

    task: str
    rows: int
    prompts: int
    completions: int

    def __str__(self) -> str:
        counts = {"prompts": self.prompts, "completions": self.completions}
        some = " and ".join(f"{count} {what}" for what, count in counts.items() if count)
        return f"{self.task}: {some} of {self.rows} rows are cut"


def survey(kind: Kind, drawn: Iterable[Source]) -> list[Cut]:
    """Make tokens of all rows and return what is cut of each task.

    Raises ValueError for rows of which the tokenizer makes nothing, or tokens that the model does not know.
    """
    tasks: dict[str, dict[Example, None]] = {}
    for source in drawn:
        tasks.setdefault(source.name, {}).update(dict.fromkeys((*source.train, *source.test)))
    bar = tqdm(
        desc="rows into tokens",
        total=sum(map(len, tasks.values())),
        unit="row",
        leave=False,
        disable=not first() or None,
    )
    cuts = []
    with bar:
        for name, rows in tasks.items():
            _check_text(kind, name, [*rows])
            for row in rows:
                _check_vocabulary(kind, name, row)
                bar.update()
            counts = (sum(row in cut for row in rows) for cut in (kind.truncated, kind.truncated_completions))
            cuts.append(Cut(name, len(rows), *counts))
    return cuts


def _check_text(kind: Kind, task: str, rows: Sequence[Example]) -> None:
    """Raise ValueError for completions, one or more, or for all prompts of a classifier, that become no token."""
    wanted = kind.wants
    texts = dict.fromkeys(getattr(row, wanted) for row in rows)
    if wanted == "completion":
        texts.update(dict.fromkeys(option for row in rows for option in row.options))
    every = kind.tokenizer([*texts], add_special_tokens=False)["input_ids"]
    lost = [text for text, tokens in zip(texts, every) if not _holds(kind, text, tokens)]
    if lost and (wanted == "completion" or len(lost) == len(texts)):
        raise ValueError(
            f"{task}: of {len(lost)} of its {len(texts)} different {wanted}s the tokenizer makes no token that it "
            f"knows, such as {lost[0]!r}: {WAY_OUT}, or leave such rows out"
        )


def _holds(kind: Kind, text: str, tokens: Sequence[int]) -> bool:
    """Tell whether the tokens hold anything of the text but unknown ones."""
    known = [token for token in tokens if token != kind.tokenizer.unk_token_id]
    return bool(known) and (bool(kind.tokenizer.decode(known).strip()) or not text.strip())


def _check_vocabulary(kind: Kind, task: str, row: Example) -> None:
    try:
        features = kind.features(row)
    except ValueError as error:
        raise ValueError(f"{task}: the row {row.prompt[:60]!r}: {error}") from error
    tokens = [*features["input_ids"], *(features["labels"] if isinstance(features["labels"], list) else ())]
    if kind.vocabulary is not None and max(tokens, default=0) >= kind.vocabulary:
        token = max(tokens)
        raise ValueError(
            f"{task}: the row {row.prompt[:60]!r} has the token {token} ({kind.tokenizer.decode([token])!r}), and the "
            f"model knows {kind.vocabulary}, from 0 on: {WAY_OUT}"
        )
