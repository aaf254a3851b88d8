"""Evaluators by name. A score is in percent, and more is better."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

from gsr_kernels.continual.evaluators.final import final_answer
from gsr_kernels.continual.evaluators.program import check_programs, passes
from gsr_kernels.continual.examples import Example
from gsr_kernels.messages import imported, need

# an answer of a model: a text, or of a given text its loss a token, its tokens, and those that are predicted right
Answer = Any


class Evaluator(NamedTuple):
    """``asks``: what the model is asked for, "choice" (of a row's options), "text" or "loss".

    ``total``: of rows and answers, in percent. ``needs``: a package, by the name it is imported by. ``slow``: a row may
    take seconds, and the total is the mean over rows.
    """

    about: str
    asks: str
    total: Callable[[Sequence[Example], Sequence[Answer]], float]
    needs: str | None = None
    slow: bool = False


def mean(each: Callable[[Example, str], float]) -> Callable[[Sequence[Example], Sequence[str]], float]:
    """Return the mean over rows of what ``each`` gives one, in [0, 1], in percent."""
    return lambda rows, answers: 100 * statistics.fmean(map(each, rows, answers))


def same(row: Example, answer: str) -> float:
    """Equal up to case, white space, and a full stop at the end."""
    return float(_plain(answer) == _plain(row.completion))


def letter(row: Example, answer: str) -> float:
    """Equal first words, whatever reasons follow."""
    return float(_first_word(answer) == _first_word(row.completion))


def rouge_l(row: Example, answer: str) -> float:
    """F1 of the longest common subsequence of words."""
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"]).score(row.completion, answer)["rougeL"].fmeasure


def edit(row: Example, answer: str) -> float:
    """1 less the insertions and deletions between the texts, as a share of their lengths."""
    from rapidfuzz.fuzz import ratio

    return ratio(answer.strip(), row.completion.strip()) / 100


def sari(source: Sequence[str], answer: Sequence[str], reference: Sequence[str]) -> float:
    """Return in [0, 1] how well a simplification keeps, deletes and adds words (Xu et al., TACL 2016).

    It is the mean over n-grams of one to four words of the F1 of what is kept, the F1 of what is added and the
    precision of what is deleted. Where there is nothing to do and nothing done that counts as right.
    """
    scores = []
    for n in (1, 2, 3, 4):
        S, C, R = (Counter(zip(*(words[i:] for i in range(n)))) for words in (source, answer, reference))
        kept, wanted = S & C, S & R
        right = kept & wanted
        keep = _f1(_share(right, kept), _ratio(right.total(), wanted.total()))
        gone = S - C
        delete = _share(gone & (S - R), gone)
        new, asked = C.keys() - S.keys(), R.keys() - S.keys()
        add = _f1(_ratio(len(new & asked), len(new)), _ratio(len(new & asked), len(asked)))
        scores.append((keep + delete + add) / 3)
    return sum(scores) / len(scores)


def simpler(row: Example, answer: str) -> float:
    """SARI, of lower-case words and signs."""
    texts = (row.source or row.prompt, answer, row.completion)
    return sari(*(re.findall(r"\w+|[^\w\s]", text.lower()) for text in texts))


def bleu(tokenizer: str) -> Callable[[Sequence[Example], Sequence[str]], float]:
    """Of the corpus, as sacrebleu counts it with one of its tokenizers."""

    def total(rows: Sequence[Example], answers: Sequence[str]) -> float:
        from sacrebleu import corpus_bleu

        return corpus_bleu(list(answers), [[row.completion for row in rows]], tokenize=tokenizer).score

    return total


def likely(rows: Sequence[Example], losses: Sequence[tuple[float, int, int]]) -> float:
    """``100 exp(-loss)``, loss the mean over all tokens of all rows."""
    tokens = max(1, sum(count for _, count, _ in losses))
    return 100 * math.exp(-sum(loss * count for loss, count, _ in losses) / tokens)


def predicted(rows: Sequence[Example], losses: Sequence[tuple[float, int, int]]) -> float:
    """Return the share of all tokens of all rows that are predicted right, in percent."""
    return 100 * sum(right for *_, right in losses) / max(1, sum(count for _, count, _ in losses))


EVALUATORS = {
    "accuracy": Evaluator("rows whose likeliest option is the right one", "choice", mean(same)),
    "exact": Evaluator("answers equal to the completion up to case and white space", "text", mean(same)),
    "final": Evaluator(
        "final answers, boxed or the last number, equal to the completion's", "text", mean(final_answer)
    ),
    "letter": Evaluator("answers whose first word is the completion's", "text", mean(letter)),
    "bleu": Evaluator("corpus BLEU", "text", bleu("13a"), "sacrebleu"),
    "bleu-zh": Evaluator("corpus BLEU of Chinese characters", "text", bleu("zh"), "sacrebleu"),
    "rouge-l": Evaluator("ROUGE-L, F1", "text", mean(rouge_l), "rouge_score"),
    "sari": Evaluator("SARI", "text", mean(simpler)),
    "edit": Evaluator("edit similarity", "text", mean(edit), "rapidfuzz"),
    "pass@1": Evaluator("programs that pass their tests", "text", mean(passes), slow=True),
    "tokens": Evaluator("tokens predicted right, all before them given", "loss", predicted),
    "loss": Evaluator("100 exp(-loss), the geometric mean of the probability of each next token", "loss", likely),
}


@cache
def evaluator(name: str) -> Evaluator:
    """Return the evaluator of a name, or of a function of one's own, ``module:function``.

    The function takes a row and the model's answer and returns a number in [0, 1]; an ``Evaluator`` is taken as it is.
    Raises ValueError where there is none.
    """
    if name in EVALUATORS:
        return EVALUATORS[name]
    if ":" not in name:
        raise ValueError(f"--metric {name!r} is unknown; there are {', '.join(EVALUATORS)}, and module:function")
    own = imported(f"--metric {name}", name)
    if isinstance(own, Evaluator):
        return own
    if not callable(own):
        raise ValueError(f"--metric {name} is no function of a row and an answer, and no Evaluator")

    def each(row: Example, answer: str) -> float:
        value = own(row, answer)
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ValueError(f"--metric {name} must give a number in [0, 1], got {value!r} for the answer {answer!r}")
        return float(value)

    return Evaluator((own.__doc__ or name).strip().splitlines()[0].rstrip("."), "text", mean(each))


def check_metrics(names: Iterable[str]) -> None:
    """Raise ValueError for an unknown metric, one that needs what is not installed or what the machine lacks."""
    for name in names:
        needs = evaluator(name).needs
        if needs is not None:
            need(f"--metric {name}", needs, package=needs.replace("_", "-"))
        if name == "pass@1":
            check_programs()


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".")


def _first_word(text: str) -> str:
    words = re.findall(r"\w+", text.casefold().removeprefix("answer:"))
    return words[0] if words else ""


def _share(right: Counter, done: Counter) -> float:
    """Return the mean over distinct n-grams of the part of each that was right."""
    return _ratio(sum(right[gram] / count for gram, count in done.items()), len(done))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 1.0


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
