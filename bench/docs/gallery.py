"""The pictures of docs/gallery.md, by the code on it."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from bench.docs.pages import DOCS, IMAGES, ROOT

PAGE = DOCS / "gallery.md"


def snippets(page: Path) -> str:
    """Return the Python that a page shows, without the examples that it includes."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M)
    return "\n".join(block for block in blocks if "--8<--" not in block)


def known() -> dict[str, Any]:
    """Return what a page's code may take as given: the reader's model and batches, torch and this package."""
    if str(ROOT / "examples") not in sys.path:
        sys.path.insert(0, str(ROOT / "examples"))
    from tiny import rows, tiny_llama

    import gsr_kernels

    tokens = torch.tensor([row["input_ids"] for row in rows(8)])
    batches = [{"input_ids": tokens, "labels": tokens}] * 2
    return {"torch": torch, "gsr_kernels": gsr_kernels, "model": tiny_llama(), "batches": batches}


def write() -> None:
    """Run the page's code and keep the pictures that it draws."""
    folder = IMAGES / "gallery"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        here = Path.cwd()
        os.chdir(made)
        try:
            exec(compile(snippets(PAGE), PAGE.name, "exec"), known())
        finally:
            os.chdir(here)
        for picture in Path(made).glob("*.png"):
            picture.replace(folder / picture.name)
