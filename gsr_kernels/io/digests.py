"""Digests of files: a change of any byte is noticed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

from tqdm import tqdm

from gsr_kernels.io.saved_model import saved_tensors

# bytes of a file that one thread digests; the digest of the file depends on it
CHUNK = 1 << 24
# beside the weights, what a model and its tokenizer are read from
SETTINGS = (".json", ".model", ".txt", ".jinja", ".tiktoken")


def model_digests(folder: str | os.PathLike[str]) -> dict[str, str]:
    """Return a digest of each file that a saved model and its tokenizer are read from, by its name.

    Raises ValueError where the weights are damaged.
    """
    directory = Path(folder)
    try:
        weights = {one.file for one in saved_tensors(directory).values()}
    except FileNotFoundError:
        weights = {*directory.glob("*.bin")}
    read = [path for path in directory.iterdir() if path.suffix in SETTINGS and path.is_file()]
    return digests(sorted({*weights, *read}))


def digests(files: Sequence[Path]) -> dict[str, str]:
    """Return the digest of each file by its name: of the digests of its parts, which all cores share."""
    parts = [(file, start) for file in files for start in range(0, file.stat().st_size or 1, CHUNK)]
    whole = {file.name: sha256() for file in files}
    with ThreadPoolExecutor() as pool:
        found = tqdm(pool.map(_part, parts), "digest of the model", len(parts), leave=False, delay=1)
        for (file, _), digest in zip(parts, found):
            whole[file.name].update(digest)
    return {name: digest.hexdigest()[:32] for name, digest in whole.items()}


def _part(part: tuple[Path, int]) -> bytes:
    file, start = part
    with file.open("rb") as opened:
        opened.seek(start)
        # the hash that processors have instructions for
        return sha256(opened.read(CHUNK)).digest()
