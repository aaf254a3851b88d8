"""The second part of the study: its text, a run of it in the smallest size, and what is committed of it."""

import gc
import gzip
import json
import random
from pathlib import Path

import pytest

from bench.docs import evidence
from bench.docs.pages import filled
from bench.studies import language_model, language_runs, language_tables, queue
from bench.studies import language_text as text
from bench.studies.language_model import Size
from gsr_kernels.cli import continual as command

SMALL = Size(300, 32, 1, 2, 32, 4, 1e-3, 3, 2, 3000, 300)
SEQLORA = (("study-back", 1), ("study-forth", 0), ("tune-forth", 1000))
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
    for language in ("en", "de"):
        pages = found.held_out[language]
        assert sum(map(len, pages)) >= 1500
        learned = set(found.training[language].splitlines())
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
    pairs = {name: [(f"{name} {i}".encode(), f"{i * i}".encode()) for i in range(40)] for name in language_runs.METRICS}
    monkeypatch.setattr(language_model.library, "rows", pairs.get)
    monkeypatch.setattr(language_model.library, "SOURCES", dict.fromkeys(("docs", "dates")))
    metrics = {"docs": "edit", "dates": "exact"}
    monkeypatch.setattr(language_runs, "METRICS", metrics)
    monkeypatch.setattr(language_runs, "ORDERS", {"forth": tuple(metrics), "back": tuple(reversed(metrics))})
    monkeypatch.setattr(language_runs, "METHODS", ("seqft", "seqlora"))
    monkeypatch.setattr(language_runs, "GRID", (1e-3,))
    monkeypatch.setattr(language_runs, "RATES", dict.fromkeys(language_runs.RATES, (1e-3,)))
    # no pictures
    monkeypatch.setattr(command, "_draw", lambda *_: None)
    monkeypatch.setattr(language_runs, "NEW_TOKENS", 2)
    monkeypatch.setattr(queue, "SEEDS", (0, 1))
    # what the session holds is no matter of accelerate's collections
    gc.freeze()
    language_model.prepare(tmp_path / "work", SMALL, manuals)
    yield tmp_path / "work"
    gc.unfreeze()


@pytest.mark.filterwarnings("ignore:gsr_kernels. only")
def test_from_a_machines_text_to_the_tables(work, tmp_path, monkeypatch):
    with pytest.raises(FileExistsError, match="is prepared already"):
        language_model.prepare(work, SMALL)
    rows = {part: set((work / part / "dates.jsonl").read_text().splitlines()) for part in ("tune", "study")}
    assert len(rows["tune"]) == 8 and len(rows["study"]) == 24 and not rows["tune"] & rows["study"]

    results = tmp_path / "results"
    with pytest.raises(FileNotFoundError, match="is not prepared"):
        language_runs.work(tmp_path, language_runs.gate, results)
    with pytest.raises(ValueError, match="runs of another --work"):
        language_runs.work(work, language_runs.gate, language_runs.RESULTS)
    language_runs.work(work, language_runs.gate, results)

    def plan(records):
        return language_runs.comparison(records, language_runs.METHODS)

    # stopped before the record of its second run is written, it goes on from there
    measured, seen = language_runs.measured, []

    def stop(matrix):
        seen.append(matrix)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return measured(matrix)

    monkeypatch.setattr(language_runs, "measured", stop)
    with pytest.raises(KeyboardInterrupt):
        language_runs.work(work, plan, results)
    done = {path: path.read_bytes() for path in results.glob("seq*/*.json")}
    assert len(done) == 1
    language_runs.work(work, plan, results)
    assert {path: path.read_bytes() for path in done} == done and seen[1] == seen[2]
    names = sorted(str(path.relative_to(results)) for path in results.glob("seqlora/*.json"))
    assert names == [f"seqlora/{run}-lr0.001-seed{seed}.json" for run, seed in SEQLORA]
    assert not list((work / "runs").glob("*/*"))
    record = json.loads((results / names[0]).read_text())
    assert record["tasks"] == ["dates", "docs"] and len(record["known"]) == 3 and min(record["known"]) > 0

    page = tmp_path / "page.md"
    page.write_text(
        "".join(f"<!-- bench:{name} -->\n<!-- /bench:{name} -->\n" for name in language_tables.blocks(results))
    )
    evidence.write_language(page, results)
    assert "| SeqLoRA | 0.001 | 2 | " in page.read_text() and "difference in held-out kept" in page.read_text()


def test_what_is_committed_makes_the_committed_tables():
    page = evidence.PAGE.read_text(encoding="utf-8")
    assert filled(page, language_tables.blocks(language_runs.RESULTS)) == page


def test_a_report_without_runs_names_the_way_out(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"bench\.studies language run"):
        evidence.write_language(Path("page.md"), tmp_path)
