"""The site builds without a warning, fetches nothing, and what it shows as Python runs."""

import re
from pathlib import Path

import jupytext
import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

import gsr_kernels
from bench.docs import prose
from bench.docs.gallery import known, snippets
from bench.docs.tutorial import PAGE, SOURCE

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page)], ids=lambda page: page.name)
@pytest.mark.filterwarnings("ignore:gsr_kernels. only", "ignore:torch.distributed is disabled")
def test_the_python_on_a_page_runs(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    exec(compile(snippets(page), page.name, "exec"), known())


def test_the_tutorial_is_its_notebook():
    cells = jupytext.read(SOURCE).cells
    assert re.findall(r"^```python\n(.*?)\n```$", PAGE.read_text(), re.S | re.M) == [
        cell.source for cell in cells if cell.cell_type == "code"
    ]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The pages of the site, by path; a warning of mkdocs is an error."""
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder)))
    return {str(page.relative_to(folder).parent): page.read_text() for page in folder.rglob("index.html")}


def test_the_site_shows_examples_and_formulas(site):
    assert "optimizer.step()" in site["trainers/plain"]
    assert site["methods"].count('<svg role="img"') > 10 and "arithmatex" not in site["methods"]


def test_a_page_fetches_nothing_from_elsewhere(site):
    fetched = r"""<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)="?(?:https?:)?//[^">]*"""
    found = {name: re.findall(fetched, html) for name, html in site.items()}
    assert {name: links for name, links in found.items() if links} == {}


def test_the_reference_has_every_public_name(site):
    shown = "".join(html for name, html in site.items() if name.startswith("api/"))
    assert [name for name in gsr_kernels.__all__ if f">{name}</span>" not in shown] == []


def test_every_example_has_its_page():
    shown = re.findall(r'--8<-- "examples/(\w+\.py)"', "\n".join(page.read_text() for page in PAGES))
    assert sorted(shown) == sorted(path.name for path in (ROOT / "examples").glob("*.py") if path.name != "tiny.py")


@pytest.mark.parametrize(("pages", "words"), [(PAGES[:1], 14), (PAGES[1:], 13.5)], ids=["README", "docs"])
def test_sentences_are_short(pages, words):
    found = prose.count(pages)
    assert found.a_sentence <= words and found.semicolons_in_100 <= 0.4, prose.__doc__


def test_a_sentence_is_counted_as_a_reader_sees_it():
    page = (
        "# A title\n\nOne `a; b` and [two three](x). Is it?\n\n| a; b |\n\n```python\nx; y\n```\n- four; 0.5\n- five\n"
    )
    counts = prose.Counts(words=10, sentences=4, semicolons=1)
    assert prose.sentences(page)[0].split() == ["One", "code", "and", "two", "three"]
    assert prose.count_text(page) == counts
