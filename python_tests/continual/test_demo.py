"""The demo's model, its tokenizer, its pretraining text and its tasks."""

import random

import pytest
import torch
from transformers import LlamaForCausalLM

from gsr_kernels.continual import demo, library
from gsr_kernels.continual.evaluators import EVALUATORS
from gsr_kernels.continual.examples import TEST_ROWS, Example, Source, split
from gsr_kernels.continual.kinds import IGNORED
from gsr_kernels.continual.models import open_kind
from gsr_kernels.continual.settings import DemoSettings, RunSettings

TINY = DemoSettings(width=16, layers=2, heads=2, kv_heads=1)


@pytest.fixture(scope="module")
def sources():
    return demo.tasks(None).sources


@pytest.fixture(scope="module")
def kind():
    tokenizer = demo.byte_tokenizer()
    return open_kind(RunSettings(demo=TINY, eval_batch=64), demo.config(TINY, tokenizer), tokenizer)


def model(kind, seed=0):
    torch.manual_seed(seed)
    return LlamaForCausalLM(demo.config(TINY, kind.tokenizer)).eval()


def test_five_tasks_of_enough_short_rows(sources):
    assert [source.name for source in sources] == ["docs", "code", "names", "arithmetic", "dates"]
    for source in sources:
        assert len(source.train) >= 2 * TEST_ROWS, source.name
        assert all(row.prompt.endswith("\n") and row.completion for row in source.train)
        # with the new line between them
        longest = max(len((row.prompt + row.completion).encode()) for row in source.train)
        assert longest <= library.ROW_BYTES + 1
        assert source.about and "\n" not in source.about


def test_rows_say_what_their_task_promises(sources):
    _, code, names, arithmetic, dates = ({row.prompt: row.completion for row in source.train} for source in sources)
    assert code["import os\n"] == "keyword name"
    assert names["é\n"] == "LATIN SMALL LETTER E WITH ACUTE"
    assert arithmetic["98 101\n"] == "104 107"
    assert dates["2000-02-29\n"] == "Tue, 29 Feb 2000"


def test_tasks_come_in_the_order_that_is_asked_for():
    assert [source.name for source in demo.tasks("dates, docs").sources] == ["dates", "docs"]
    with pytest.raises(ValueError, match=r"unknown 'magic'\. The data has docs, code"):
        demo.tasks("docs,magic")


def test_pretraining_text_and_tasks_share_no_module(sources):
    assert set(library.modules(half=0)).isdisjoint(library.modules(half=1))
    general = demo.general()
    assert all(row.prompt == "" and row.goes_on for row in general.train)
    assert {row for source in sources for row in source.train}.isdisjoint(general.train)


def test_a_draw_splits_all_rows_and_follows_its_seed(sources):
    for source in [*sources, demo.general()]:
        task, rows = source.draw(3), set(source.train)
        assert len(task.test) == TEST_ROWS
        assert set(task.train).isdisjoint(task.test)
        assert set(task.train) | set(task.test) == rows
        assert len(task.train) + len(task.test) == len(rows)
        assert source.draw(3) == task != source.draw(4)


def test_few_rows_are_on_both_sides_and_none_twice():
    train, test = split(["ab", "ac", "ab"], 0)
    assert len(train) == len(test) == 1 and {*train, *test} == {"ab", "ac"}


def test_the_digest_tells_rows_apart():
    rows = (Example("a", "b"), Example("a", "c"))
    one, other, back = (Source(*given) for given in (("x", "", rows), ("y", "", rows), ("x", "", rows[::-1])))
    assert one.described()["sha256"] == other.described()["sha256"] != back.described()["sha256"]


def test_no_library_sources(monkeypatch, tmp_path):
    monkeypatch.setattr(library.sysconfig, "get_path", lambda name: str(tmp_path))
    library.rows.cache_clear()
    with pytest.raises(ValueError, match="bring your own with --data"):
        demo.tasks(None)
    library.rows.cache_clear()


def test_tokens_are_bytes(kind):
    text = "x = é\n\t<s> " + "".join(map(chr, range(1, 300)))
    tokens = kind.tokenizer(text)["input_ids"]
    assert len(tokens) == len(text.encode()) and kind.tokenizer.decode(tokens) == text
    assert len(kind.tokenizer) == 258 == demo.config(TINY, kind.tokenizer).vocab_size


def test_square_wide_and_tall_weights_occur(kind):
    shapes = {tuple(weight.shape) for name, weight in model(kind).named_parameters() if "layers" in name}
    assert {(16, 16), (8, 16), (42, 16), (16, 42)} <= shapes


def test_seeds_make_models(kind):
    first, again, other = (list(model(kind, seed).parameters()) for seed in (1, 1, 2))
    assert all(torch.equal(one, two) for one, two in zip(first, again))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"width": 0}, "width must be at least 1"),
        ({"layers": 0}, "layers must be at least 1"),
        ({"width": 20}, r"width 20 must be a multiple of 2 \* heads = 8"),
        ({"pretrain_lr": 0}, "pretrain_lr must be positive"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        DemoSettings(**sizes)


def test_the_score_counts_bytes_whatever_the_batches(kind):
    made, generator = model(kind), random.Random(0)
    rows = [
        Example("q" * generator.randrange(9), "".join(generator.choices("aaab", k=1 + i % 7)), goes_on=i % 3 == 0)
        for i in range(20)
    ]
    batch = kind.collator()([kind.features(row) for row in rows])
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-2)
    for _ in range(10):
        made(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    right = total = 0
    for row in rows:
        features = kind.features(row)
        logits = made(torch.tensor([features["input_ids"]])).logits[0]
        for index, label in enumerate(features["labels"]):
            if label != IGNORED:
                right += int(logits[index - 1].argmax()) == label
                total += 1
    scores = []
    for kind.batch in (64, 3):
        scores.append(EVALUATORS["tokens"].total(rows, kind.answers(made, rows, "loss", 1)))
    assert scores == [pytest.approx(100 * right / total)] * 2 and right
