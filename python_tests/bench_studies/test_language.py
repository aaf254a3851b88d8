"""The second part of the study: its text, a run of it in the smallest size, and what is committed of it."""

import dataclasses
import gc
import gzip
import random

import pytest

from bench.docs import evidence
from bench.studies import frontier, language, language_model
from bench.studies import language_text as text
from bench.studies.answer import Answer
from bench.studies.study import Configuration, Plan

STUDY = dataclasses.replace(
    language.STUDY,
    tasks=("docs", "dates"),
    configurations={
        "seqft": Configuration("SeqFT", "seqft", (1e-3, 2e-3)),
        "lwf-own": Configuration("LwF-own", "lwf-own", (1e-3,), {"own_rows": 1, "own_tokens": 3}, 1),
    },
    plan=Plan(1e-3, {"seqft": (1e-3,), "lwf-own": (1e-3,)}),
    gone={},
)
SMALL = {"steps": 2, "new_tokens": 2}
SHAPE = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
TINY = {"VOCABULARY": 300, "TOKENS": 32, "BATCH": 4, "LR": 1e-3, "STEPS": 3}
TINY["SHAPE"] = {**language_model.SHAPE, **SHAPE, "num_key_value_heads": 1}
WORDS = {"man1": "the file is read and written to a list of names", "de/man1": "die Datei wird aus der Liste gelesen"}


@pytest.fixture
def manuals(tmp_path, monkeypatch):
    """Manual pages in two languages, short ones and as many of one template, beside a library of a few words."""
    generator = random.Random(0)
    monkeypatch.setattr(text, "LEAST", 1000)
    monkeypatch.setattr(text.library, "modules", lambda half: [])
    monkeypatch.setattr(text.library, "general", lambda: [(b"", b"prose of the library " * 50)])
    for folder, words in WORDS.items():
        (tmp_path / "man" / folder).mkdir(parents=True)
        for place in range(60):
            name = f"{chr(97 + place % 26)}{chr(97 + place // 26)}"
            body = "\n".join(" ".join(generator.choices(words.split(), k=12)) for _ in range(14))
            pages = {
                name: f".TH {name}\n.SH NAME\n{body}\n",
                f"tool-{place}": f".TH tool\nof a template {place}\n{body}",
            }
            for title, page in pages.items():
                (tmp_path / "man" / folder / f"{title}.1.gz").write_bytes(gzip.compress(page.encode()))
    return tmp_path / "man"


def test_a_manual_page_loses_its_markup():
    page = '.\\" hidden\n.SH NAME\nls \\- list \\fBdirectory\\fR contents\n\n\nof \\s-1ALL\\s0'
    assert text.plain(page) == "NAME\nls - list directory contents\nof ALL"


def test_every_language_has_its_share_and_its_pages(manuals, monkeypatch):
    monkeypatch.setattr(text, "LONG_LINE", 20)
    found = text.gather(3000, 1500, manuals)
    assert {"en", "de"} <= set(found.training) and all(len(each) <= 3000 for each in found.training.values())
    for tongue in ("en", "de"):
        pages = found.held_out[tongue]
        assert sum(map(len, pages)) >= 1500
        learned = set(found.training[tongue].splitlines())
        for page in pages:
            long = [line for line in page.splitlines() if len(line) >= 20]
            assert sum(line in learned for line in long) <= text.KNOWN_LINES * len(long)
    monkeypatch.setattr(text, "LEAST", 10**5)
    assert not {"en", "de"} & set(text.gather(10**6, 1500, manuals).training)


def test_one_template_is_not_most_of_the_text(manuals, monkeypatch):
    monkeypatch.setattr(text, "APART", 1000)
    learned = text.gather(10**5, 300, manuals).training["en"]
    assert learned.count("of a template") == text.FAMILY_PAGES


@pytest.fixture
def work(tmp_path, manuals, monkeypatch):
    """A prepared folder of the smallest size, and little patience."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pairs = {name: [(f"{name} {i}".encode(), f"{i * i}".encode()) for i in range(40)] for name in STUDY.tasks}
    monkeypatch.setattr(language.library, "rows", pairs.get)
    monkeypatch.setattr(language, "TASKS", STUDY.tasks)
    monkeypatch.setattr(language, "RECIPE", {**language.RECIPE, **SMALL})
    monkeypatch.setattr(language, "QUOTA", 3000)
    monkeypatch.setattr(language, "HELD_OUT_CHARACTERS", 300)
    for name, value in TINY.items():
        monkeypatch.setattr(language_model, name, value)
    monkeypatch.setattr(frontier, "SEEDS", (0, 1))
    # what the session holds is no matter of accelerate's collections
    gc.freeze()
    frontier.prepare(STUDY, tmp_path / "work", manuals=manuals)
    yield tmp_path / "work"
    gc.unfreeze()


@pytest.mark.filterwarnings("ignore:gsr_kernels. only")
def test_from_a_machines_text_to_the_tables(work, tmp_path, monkeypatch):
    with pytest.raises(FileExistsError, match="is prepared already"):
        frontier.prepare(STUDY, work)
    rows = {part: set((work / part / "dates.jsonl").read_text().splitlines()) for part in ("tune", "study")}
    assert len(rows["tune"]) == 8 and len(rows["study"]) == 24 and not rows["tune"] & rows["study"]
    frontier.work(STUDY, work, frontier.tuning)

    # stopped within a run, it goes on with that one
    kept, seen = frontier.keep, []

    def stop(file, record):
        seen.append(record)
        if len(seen) == 2:
            raise KeyboardInterrupt
        kept(file, record)

    monkeypatch.setattr(frontier, "keep", stop)
    with pytest.raises(KeyboardInterrupt):
        frontier.work(STUDY, work, frontier.planned)
    done = (work / frontier.RUNS).read_bytes()
    assert done.count(b"\n") == 7
    frontier.work(STUDY, work, frontier.planned)
    assert (work / frontier.RUNS).read_bytes().startswith(done)
    # all that is scored of a run is the same again
    assert {**seen[1], "seconds": 0} == {**seen[2], "seconds": 0}
    assert not list((work / "runs").iterdir())
    records = frontier.read(work / frontier.RUNS)
    assert [(each["tasks"], each["seed"]) for each in records[-2:]] == [(["dates", "docs"], 1)] * 2
    assert all(len(each["text"]) == 2 and min(each["text"]) > 0 for each in records)

    (tmp_path / "language").mkdir()
    frontier.pack(STUDY, work, tmp_path)
    answer = Answer(STUDY, tmp_path / "language" / frontier.PACKED)
    assert "| LwF-own | 1 × |" in answer.page()["language frontier"]
    evidence.draw_frontier([answer], tmp_path / "frontier.svg")
    assert "LwF-own" in (tmp_path / "frontier.svg").read_text()
