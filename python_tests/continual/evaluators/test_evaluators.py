"""Scores against values worked out by hand, and sacrebleu's and rouge-score's own."""

import math

import pytest

from gsr_kernels.continual.evaluators import EVALUATORS, check_metrics, sari
from gsr_kernels.continual.examples import Example

TEXTS = [name for name, evaluator in EVALUATORS.items() if evaluator.asks == "text" and name not in ("pass@1", "final")]


def score(name, *pairs):
    """Of pairs of an answer and what it should be."""
    rows = [Example("a question about the river", right) for _, right in pairs]
    return EVALUATORS[name].total(rows, [answer for answer, _ in pairs])


@pytest.mark.parametrize("name", TEXTS)
def test_the_right_answer_is_worth_all_and_none_is_worth_little(name):
    right = "the quick brown fox jumps over the lazy dog"
    assert score(name, (right, right)) == pytest.approx(100)
    # to delete the question's words is right for four of five words, and for all longer n-grams
    none = {"sari": 100 * (0.8 / 3 + 3 * 2 / 3) / 4}.get(name, 0)
    assert score(name, ("", right)) == pytest.approx(none)


def test_exact_looks_past_case_white_space_and_a_full_stop():
    assert score("exact", (" True.\n", "true"), ("-5", "5"), ("1.5", "15"), ("a  b", "A b")) == 50


def test_the_letter_is_the_first_word():
    assert score("letter", ("B\nBecause", "B. It"), ("Answer: A", "A"), ("A", "B"), ("?", "A")) == 50


def test_bleu_and_rouge_are_those_of_their_packages():
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu import corpus_bleu

    pairs = [("a cat sat on the mat today", "the cat sat on the mat"), ("all of it is here", "it is all here now")]
    answers, right = zip(*pairs)
    assert score("bleu", *pairs) == pytest.approx(corpus_bleu(list(answers), [list(right)]).score)
    each = [RougeScorer(["rougeL"]).score(target, answer)["rougeL"].fmeasure for answer, target in pairs]
    assert score("rouge-l", *pairs) == pytest.approx(50 * sum(each))
    assert score("bleu-zh", ("今天天气很好", "今天天气很好"), ("我去", "我去了")) > score("bleu", ("我去", "我去了"))


def test_edit_similarity_counts_insertions_and_deletions():
    # of 3 + 4 letters 6 agree
    assert score("edit", ("abd", "abcd")) == pytest.approx(100 * 6 / 7)


def test_sari_by_hand():
    # one-word texts: kept, deleted and added can each be right or wrong
    assert sari(["a"], ["a"], ["a"]) == 1
    assert sari(["a"], ["b"], ["b"]) == 1
    # kept wrongly, nothing deleted (right, as nothing can be held against it), nothing added where b was wanted
    assert sari(["a"], ["a"], ["b"]) == pytest.approx((0 + 1 + 0) / 3 / 4 + 3 / 4)
    # "b" is deleted as it should be, "c" kept wrongly: words (2/3 + 1 + 1)/3, pairs (1 + 1/2 + 0)/3
    words = (2 * (1 / 2) * 1 / (1 / 2 + 1) + 1 + 1) / 3
    pairs = (1 + 1 + 0) / 3
    assert sari(["a", "b", "c"], ["a", "c"], ["a"]) == pytest.approx((words + pairs + 2) / 4)


def test_sari_of_repeated_words_by_hand():
    source, answer, reference = (
        text.split() for text in ("the cat and the dog and the bird", "the cat and the bird", "the cat and the dog")
    )
    # of one to four words: the F1 of what is kept, the precision of what is deleted, the F1 of what is added
    words = 2 * (3 / 4) * (4 / 5) / (3 / 4 + 4 / 5) + 2 / 3 + 1
    pairs = 3 / 4 + 2 / 3 + 1
    threes = 2 / 3 + 2 / 3 + 1
    fours = 2 * 1 * (1 / 2) / (1 + 1 / 2) + 3 / 4 + 0
    assert sari(source, answer, reference) == pytest.approx((words + pairs + threes + fours) / 12, rel=1e-12)


@pytest.mark.parametrize(
    ("source", "answer", "reference", "value"),
    [
        (
            "About 95 species are currently accepted .",
            "About 95 you now get in .",
            "About 95 species are now accepted .",
            0.2888888888888889,
        ),
        (
            "the committee met on tuesday in order to discuss the budget of the city",
            "the committee met to talk about the city budget",
            "the group met to talk about the budget of the city",
            0.5329611908559277,
        ),
        (
            "a long and winding road leads to your door",
            "a road leads to your door",
            "a long road leads to your door",
            0.6857193732193733,
        ),
    ],
)
def test_sari_is_that_of_the_evaluate_package(source, answer, reference, value):
    # where it differs, at words that are repeated, the paper's formula counts
    assert sari(source.split(), answer.split(), reference.split()) == pytest.approx(value, rel=1e-12)


def test_loss_is_the_mean_over_tokens():
    rows = [Example("", "text")] * 2
    assert EVALUATORS["loss"].total(rows, [(1.0, 3, 2), (2.0, 1, 0)]) == pytest.approx(100 * math.exp(-5 / 4))


def test_metrics_are_checked_by_name():
    check_metrics(EVALUATORS)
    with pytest.raises(ValueError, match="--metric 'chrf' is unknown; there are accuracy, exact, final, letter, bleu"):
        check_metrics(["exact", "chrf"])
