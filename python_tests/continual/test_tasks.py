"""The built-in tasks, their splits, and the reader of a user's own."""

import json
import random

import pytest

from gsr_kernels.continual import library
from gsr_kernels.continual.tasks import TEST_ROWS, Pool, general_pool, library_pools, read_pools


@pytest.fixture(scope="module")
def pools():
    return library_pools()


def test_five_tasks_of_enough_short_rows(pools):
    assert [pool.name for pool in pools] == ["docs", "code", "names", "arithmetic", "dates"]
    for pool in pools:
        assert len(pool.rows) >= 2 * TEST_ROWS, pool.name
        assert all(prompt and completion for prompt, completion in pool.rows)
        assert max(len(prompt) + len(completion) for prompt, completion in pool.rows) <= library.ROW_BYTES
        assert pool.about and "\n" not in pool.about


def test_rows_say_what_their_task_promises(pools):
    _, code, names, arithmetic, dates = (dict(pool.rows) for pool in pools)
    assert code[b"import os"] == b"keyword name"
    assert names["é".encode()] == b"LATIN SMALL LETTER E WITH ACUTE"
    assert arithmetic[b"98 101"] == b"104 107"
    assert dates[b"2000-02-29"] == b"Tue, 29 Feb 2000"


def test_pretraining_text_and_tasks_share_no_module(pools):
    assert set(library.modules(half=0)).isdisjoint(library.modules(half=1))
    general = general_pool()
    assert all(prompt == b"" and len(text) == library.ROW_BYTES for prompt, text in general.rows)
    assert {row for pool in pools for row in pool.rows}.isdisjoint(general.rows)


def test_a_draw_splits_all_rows_and_follows_its_seed(pools):
    for pool in [*pools, general_pool()]:
        task = pool.draw(3)
        assert len(task.test) == TEST_ROWS
        assert set(task.train).isdisjoint(task.test)
        assert set(task.train) | set(task.test) == set(pool.rows)
        assert len(task.train) + len(task.test) == len(pool.rows)
        assert pool.draw(3) == task != pool.draw(4)


def test_small_pools_keep_rows_on_both_sides():
    pool = Pool("tiny", "two rows", ((b"a", b"b"), (b"a", b"c"), (b"a", b"b")))
    assert len(pool.rows) == 2
    task = pool.draw(0)
    assert len(task.train) == len(task.test) == 1
    with pytest.raises(ValueError, match="all alike: needs a row to learn and one to score"):
        Pool("one", "all alike", ((b"a", b"b"), (b"a", b"b")))


def test_the_digest_tells_rows_apart():
    rows = ((b"a", b"b"), (b"a", b"c"))
    assert Pool("x", "", rows).digest() == Pool("y", "", rows).digest() != Pool("x", "", rows[::-1]).digest()


def test_no_library_sources(monkeypatch, tmp_path):
    monkeypatch.setattr(library.sysconfig, "get_path", lambda name: str(tmp_path))
    library.rows.cache_clear()
    with pytest.raises(ValueError, match="bring your own with --data"):
        library_pools()
    library.rows.cache_clear()


def write_rows(path, rows):
    path.write_text("".join(json.dumps({"prompt": prompt, "completion": text}) + "\n" for prompt, text in rows))


def test_reading_ones_own_tasks(tmp_path):
    generator = random.Random(0)
    rows = [(f"{generator.random()} é", f"{generator.random()}\n") for _ in range(20)]
    write_rows(tmp_path / "2-later.jsonl", rows)
    write_rows(tmp_path / "1-first.jsonl", [*rows[:5], rows[0], ("", "no prompt")])
    (tmp_path / "2-later.jsonl").open("a").write('\n  \n{"prompt": "p", "completion": "c", "more": 1}\r\n')
    (tmp_path / "notes.txt").write_text("not a task")
    first, later = read_pools(tmp_path)
    assert (first.name, later.name) == ("1-first", "2-later")
    assert first.rows == (*((a.encode(), b.encode()) for a, b in rows[:5]), (b"", b"no prompt"))
    assert len(later.rows) == 21 and later.rows[-1] == (b"p", b"c")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "no JSON: Expecting property name.* at column 2"),
        (b"prompt,completion", "no JSON"),
        (b'["a", "b"]', "each line must be"),
        (b'{"prompt": "a"}', "'completion' must be a text, got None"),
        (b'{"prompt": 1, "completion": "b"}', "'prompt' must be a text, got 1"),
        (b'{"prompt": "a", "completion": ""}', "'completion' is empty"),
        (b'{"prompt": "a", "completion": "\xff"}', "no UTF-8"),
        (b'{"prompt": "\\ud800", "completion": "b"}', "no text"),
        (json.dumps({"prompt": "a" * 1000, "completion": "é" * 13}).encode(), "take 1026 bytes, the limit is 1024"),
    ],
)
def test_malformed_rows_are_named_by_file_and_line(tmp_path, line, message):
    good = b'{"prompt": "a", "completion": "b"}\n'
    write_rows(tmp_path / "a.jsonl", [("a", "b"), ("a", "c")])
    (tmp_path / "b.jsonl").write_bytes(good + b"\n" + line + b"\n")
    with pytest.raises(ValueError, match=message) as caught:
        read_pools(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'b.jsonl'}:3: ")


def test_folders_and_files_without_tasks_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no folder"):
        read_pools(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"holds no \*.jsonl file"):
        read_pools(tmp_path)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"empty\.jsonl: is empty"):
        read_pools(tmp_path)
    (tmp_path / "empty.jsonl").rename(tmp_path / "general.jsonl")
    with pytest.raises(ValueError, match=r"general\.jsonl: the name 'general' is taken"):
        read_pools(tmp_path)
