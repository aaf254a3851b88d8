"""docs/tutorial.md with its outputs and pictures, from the notebook docs/tutorial.py."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jupytext
from nbclient import NotebookClient
from nbformat import NotebookNode

from bench.docs.pages import DOCS, IMAGES

SOURCE, PAGE = DOCS / "tutorial.py", DOCS / "tutorial.md"
SAID = "[This notebook](tutorial.py) opens in Jupyter with jupytext, or as a plain script. Its outputs are of one CPU."


def page(notebook: NotebookNode, images: Path) -> str:
    """Return a notebook as Markdown with the outputs that it holds; pictures are written to a folder."""
    parts: list[str] = []
    for cell in notebook.cells:
        code = cell.cell_type == "code"
        parts += [f"```python\n{cell.source}\n```", *_outputs(cell, images)] if code else [cell.source]
    title, *rest = "\n\n".join(parts).split("\n", 1)
    return "\n".join([title, "", SAID, *rest]) + "\n"


def _outputs(cell: NotebookNode, images: Path) -> Iterator[str]:
    for output in cell.get("outputs", ()):
        picture = output.get("data", {}).get("image/png")
        if picture:
            # by the cell, so that another cell before it renames nothing
            path = images / f"tutorial_{cell.id}.png"
            path.write_bytes(base64.b64decode(picture))
            yield f"![What the cell above draws](images/{path.name})"
        elif output.get("name") == "stdout":
            yield f"```text\n{output.text.rstrip()}\n```"


def write() -> None:
    """Run the notebook and write the page."""
    notebook = jupytext.read(SOURCE)
    for number, cell in enumerate(notebook.cells):
        cell.id = str(number)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, resources={"metadata": {"path": folder}}).execute()
    for old in IMAGES.glob("tutorial_*.png"):
        old.unlink()
    PAGE.write_text(page(notebook, IMAGES), encoding="utf-8")
