"""A model's score on a task, and the answers that it comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gsr_kernels.continual.evaluators import Answer, evaluator
from gsr_kernels.continual.examples import Source
from gsr_kernels.continual.folder import write_text
from gsr_kernels.continual.kinds import Kind, Writer
from gsr_kernels.continual.ranks import first, gathered, on_rank0, rank, run_on_all_ranks, world


def score(kind: Kind, model: Any, task: Source, new_tokens: int | None, file: Path) -> float:
    """Return the score in percent by the task's evaluator; the answers, a share by each rank, go to a file."""
    by = evaluator(task.scored_by)
    if new_tokens is None and by.asks == "text":
        new_tokens = longest(kind, task)
    own = task.test[rank() :: world()]
    rows = len(own) * (len(task.test[0].options) if by.asks == "choice" and "text" in kind.asks else 1)
    with tqdm(desc=f"scores on {task.name}", total=rows, unit="row", leave=False, disable=not first() or None) as bar:
        kind.tick = bar.update
        mine = kind.answers(model, own, by.asks, new_tokens or 1)
    answers: list[Answer] = [None] * len(task.test)
    for start, share in enumerate(gathered(mine)):
        answers[start :: world()] = share
    lines = [
        json.dumps({"prompt": row.prompt, "completion": row.completion, "answer": answer}, ensure_ascii=False) + "\n"
        for row, answer in zip(task.test, answers)
    ]
    on_rank0(lambda: write_text(file, "".join(lines)))
    if by.slow and world() > 1:
        sums = gathered(run_on_all_ranks(lambda: by.total(own, mine) * len(own) if own else 0.0))
        return sum(sums) / len(answers)
    return on_rank0(lambda: by.total(task.test, answers))


def longest(kind: Kind, task: Source) -> int:
    """Count the tokens of the longest completion that is trained on, or known, with its end; at most ``max_tokens``."""
    texts = [row.completion for row in task.train or task.test]
    return min(kind.max_tokens, 1 + max(map(len, kind.tokenizer(texts, add_special_tokens=False)["input_ids"])))


def check_room(kind: Writer, task: Source, new_tokens: int | None) -> None:
    """Raise ValueError where the model has too few positions for an answer; see ``score``."""
    if evaluator(task.scored_by).asks != "text" or kind.positions is None:
        return
    wanted = longest(kind, task) if new_tokens is None else new_tokens
    needed = max(kind.room(row, wanted) for row in (*task.test, *task.validation))
    if needed > kind.positions:
        raise ValueError(
            f"{task.name}: a prompt and an answer of {wanted} tokens need {needed} positions, and the model has "
            f"{kind.positions}: lower --new-tokens or --max-tokens"
        )
