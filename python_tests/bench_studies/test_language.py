"""The second part of the study: its text, a run of it in the smallest size, and what is committed of it."""

import dataclasses
import gc
import gzip
import random

import pytest

from bench.docs import evidence
from bench.studies import language, language_model, queue
from bench.studies import language_text as text
from gsr_kernels.cli import continual as command

STUDY = dataclasses.replace(
    language.STUDY,
    methods={name: language.STUDY.methods[name] for name in ("seqft", "seqlora")},
    orders={"forth": ("docs", "dates"), "back": ("dates", "docs"), "alone": ("docs", "dates")},
    grid=(1e-3,) * 3,
    pairs=(("adapters?", "seqlora", "seqft"),),
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
    metrics = {"docs": "edit", "dates": "exact"}
    pairs = {name: [(f"{name} {i}".encode(), f"{i * i}".encode()) for i in range(40)] for name in metrics}
    monkeypatch.setattr(language.library, "rows", pairs.get)
    monkeypatch.setattr(language, "METRICS", metrics)
    monkeypatch.setattr(language, "RECIPE", {**language.RECIPE, **SMALL, "metric": metrics})
    monkeypatch.setattr(language, "QUOTA", 3000)
    monkeypatch.setattr(language, "HELD_OUT_CHARACTERS", 300)
    for name, value in TINY.items():
        monkeypatch.setattr(language_model, name, value)
    # no pictures
    monkeypatch.setattr(command, "_draw", lambda *_: None)
    monkeypatch.setattr(queue, "SEEDS", (0, 1))
    # what the session holds is no matter of accelerate's collections
    gc.freeze()
    queue.prepare(STUDY, tmp_path / "work", manuals=manuals)
    yield tmp_path / "work"
    gc.unfreeze()


@pytest.mark.filterwarnings("ignore:gsr_kernels. only")
def test_from_a_machines_text_to_the_tables(work, tmp_path, monkeypatch):
    with pytest.raises(FileExistsError, match="is prepared already"):
        queue.prepare(STUDY, work)
    rows = {part: set((work / part / "dates.jsonl").read_text().splitlines()) for part in ("tune", "study")}
    assert len(rows["tune"]) == 8 and len(rows["study"]) == 24 and not rows["tune"] & rows["study"]
    with pytest.raises(FileNotFoundError, match="is not prepared"):
        queue.work(STUDY, tmp_path, queue.gate)
    queue.work(STUDY, work, queue.gate)

    # stopped before the record of its second run is written, it goes on from there
    measured, seen = queue.measured, []

    def stop(study, matrix):
        seen.append(matrix)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return measured(study, matrix)

    monkeypatch.setattr(queue, "measured", stop)
    with pytest.raises(KeyboardInterrupt):
        queue.work(STUDY, work, queue.comparison)
    done = (work / queue.RUNS).read_bytes()
    assert done.count(b"\n") == 2
    queue.work(STUDY, work, queue.comparison)
    assert (work / queue.RUNS).read_bytes().startswith(done) and seen[1] == seen[2]
    records = queue.read(work)
    runs = sorted((r["order"], r["lr"], r["seed"]) for r in records if r["method"] == "seqlora")
    assert runs == [("back", 1e-3, 1), ("forth", 1e-3, 0), ("forth", 1e-3, 1000)]
    assert not list((work / "runs").iterdir())
    record = next(r for r in records if r["order"] == "back")
    assert record["tasks"] == ["dates", "docs"] and len(record["known"]) == 3 and min(record["known"]) > 0
    assert record["versions"]["torch"]

    page = tmp_path / "page.md"
    marks = [f"bench:language {name}" for name in STUDY.shown]
    page.write_text("".join(f"<!-- {mark} -->\n<!-- /{mark} -->\n" for mark in marks))
    evidence.write_study(STUDY, work, page)
    assert "| SeqLoRA | 0.001 | 2 | " in page.read_text() and "difference in held-out kept" in page.read_text()
