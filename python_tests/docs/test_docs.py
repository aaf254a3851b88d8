"""The site builds without a warning, and what it shows as Python runs."""

import re
from pathlib import Path

import pytest
import torch
from mkdocs.commands.build import build
from mkdocs.config import load_config

import gsr_kernels

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def snippets(page):
    """The Python that a page shows, without the examples that it includes, which have tests of their own."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M)
    return "\n".join(block for block in blocks if "--8<--" not in block)


@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page)], ids=lambda page: page.name)
@pytest.mark.filterwarnings("ignore:gsr_kernels. only", "ignore:torch.distributed is disabled")
def test_the_python_on_a_page_runs(page, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    from tiny import rows, tiny_llama

    tokens = torch.tensor([row["input_ids"] for row in rows(8)])
    given = {"model": tiny_llama(), "batches": [{"input_ids": tokens, "labels": tokens}] * 2}
    # what a page may take as known: the model and the data are the reader's
    exec(compile(snippets(page), page.name, "exec"), {"torch": torch, "gsr_kernels": gsr_kernels, **given})


def test_the_site_builds_without_a_warning(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True))
    assert "optimizer.step()" in (tmp_path / "trainers" / "plain" / "index.html").read_text()


def test_every_example_has_its_page():
    shown = re.findall(r'--8<-- "examples/(\w+\.py)"', "\n".join(page.read_text() for page in PAGES))
    assert sorted(shown) == sorted(path.name for path in (ROOT / "examples").glob("*.py") if path.name != "tiny.py")
