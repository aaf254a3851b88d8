"""File of the singular bases of a whole model."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gsr_kernels.basis import SpectralBasis
from gsr_kernels.io.atomic import replacing

FORMAT = "gsr_kernels.bases"
FORMAT_VERSION = 1
FACTORS = ("U", "S", "Vh")
# as safetensors calls them
DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}

# characters of a fingerprint that is not known yet
FINGERPRINT = 256


def save_bases(
    path: str | os.PathLike[str], bases: Mapping[str, SpectralBasis], settings: Mapping[str, str] | None = None
) -> None:
    """Write the bases of a model, keyed by parameter name, to one safetensors file; ``settings`` say how they arose.

    The file appears whole or not at all. Raises FileNotFoundError where its folder is not there, ValueError for what is
    no path.
    """
    with writing_bases(path, bases, settings) as add:
        for name, basis in bases.items():
            add(name, basis)


@contextmanager
def writing_bases(
    path: str | os.PathLike[str], planned: Mapping[str, SpectralBasis], settings: Mapping[str, str] | None = None
) -> Iterator[Callable[[str, SpectralBasis], None]]:
    """Yield ``add(name, basis)``, which writes a file basis by basis, in any order, and keeps none in memory.

    ``planned``: for every name a basis of the shapes and dtypes that will come, on the meta device where none is yet.
    The file appears when the last one is written, and not at all after an exception. Raises as ``save_bases``.
    """
    check_folder(path)
    entries = {name: _entry(basis, basis.fingerprint or FINGERPRINT * "-") for name, basis in planned.items()}
    layout = _layout(planned)
    # the header is written last: room for the longest
    room = -(-len(_header(layout, entries, settings)) // 8) * 8
    missing = set(planned)
    with replacing(path) as partial, partial.open("wb") as file:

        def add(name: str, basis: SpectralBasis) -> None:
            for factor in FACTORS:
                tensor, announced = getattr(basis, factor), layout[f"{name}.{factor}"]
                if (DTYPES.get(tensor.dtype), list(tensor.shape)) != (announced["dtype"], announced["shape"]):
                    raise ValueError(f"{name}.{factor} was to be {announced}, got {tensor.dtype} {list(tensor.shape)}")
                file.seek(8 + room + announced["data_offsets"][0])
                file.write(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
            entries[name] = _entry(basis, basis.fingerprint)
            missing.discard(name)

        yield add
        header = _header(layout, entries, settings)
        if missing or len(header) > room:
            raise ValueError(f"not written: {sorted(missing)}; a header of {len(header)} in {room} bytes")
        file.seek(0)
        # spaces after it are a part of the format
        file.write(struct.pack("<Q", room) + header.ljust(room))


def load_bases(
    path: str | os.PathLike[str], names: Iterable[str] | None = None, device: torch.device | str = "cpu"
) -> dict[str, SpectralBasis]:
    """Return the bases in a file by parameter name: every one, or those of ``names`` that it holds, see ``find_name``.

    The factors have the dtypes in which they were written, and are on ``device``.

    Raises FileNotFoundError where there is no such file, ValueError where it is truncated, of another kind, or newer,
    and for what is no path, or no list of names.
    """
    if not Path(check_path(path)).is_file():
        raise FileNotFoundError(f"bases: no file {os.fspath(path)}; handle.save_bases(path) writes one")
    if isinstance(names, str):
        raise ValueError(f"names must be a list of parameter names, got {names!r}")
    with _damage_named(path), safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    entries = file_entries(path, metadata)
    found = {name: find_name(name, entries) for name in (entries if names is None else names)}
    with _damage_named(path), safe_open(path, framework="pt", device=str(device)) as file:
        bases = {}
        for name, stored in found.items():
            if stored is not None:
                U, S, Vh = (aligned(file.get_tensor(f"{stored}.{factor}")) for factor in FACTORS)
                entry = entries[stored]
                sketched = entry.get("randomized", False)
                bases[name] = SpectralBasis(U, S, Vh, entry["fingerprint"], entry["head_dim"], sketched)
        return bases


def find_name(name: str, names: Collection[str]) -> str | None:
    """Return the one of ``names`` that is a parameter's, though leading modules may be missing or added.

    A base model's parameters have another beginning inside the model with a head, or inside a wrapper. A basis that is
    found by a wrong name has the fingerprint of another weight.
    """
    if name in names:
        return name
    similar = [one for one in names if one.endswith(f".{name}") or name.endswith(f".{one}")]
    return similar[0] if len(similar) == 1 else None


def aligned(read: Tensor) -> Tensor:
    """Return a tensor read from a file in memory of its own.

    A mapped file gives it at multiples of its element size, where MKL's small products round differently than on
    torch's own allocations: a resumed run would not repeat the first one's bits.
    """
    return read.contiguous() if read.device.type != "cpu" else read.clone(memory_format=torch.contiguous_format)


def file_entries(path: str | os.PathLike[str], metadata: dict[str, str]) -> dict[str, dict]:
    """Return the entry of each basis; ValueError for a damaged file, one of another kind, or of a newer format."""
    if metadata.get("format") != FORMAT:
        raise ValueError(f"bases: {os.fspath(path)} is not a bases file; handle.save_bases(path) writes one")
    version = metadata.get("format_version")
    if str(version) != str(FORMAT_VERSION):
        raise ValueError(
            f"bases: {os.fspath(path)} has format {version}, this gsr-kernels reads {FORMAT_VERSION}: "
            "upgrade to a newer one, or write the file anew"
        )
    with _damage_named(path):
        return {name: dict(entry) for name, entry in json.loads(metadata["bases"]).items()}


@contextmanager
def _damage_named(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"bases: {os.fspath(path)} is truncated or damaged ({error}); write it anew") from error


def _entry(basis: SpectralBasis, fingerprint: str | None) -> dict[str, str | int | None]:
    return {"fingerprint": fingerprint, "rank": basis.rank, "head_dim": basis.head_dim, "randomized": basis.randomized}


def _layout(planned: Mapping[str, SpectralBasis]) -> dict[str, dict]:
    """Return what safetensors' header says of each factor: its dtype, shape and place."""
    factors = {f"{name}.{factor}": getattr(basis, factor) for name, basis in planned.items() for factor in FACTORS}
    layout, end = {}, 0
    # a reader maps elements in place: the wide ones come first, so that all are aligned
    for name in sorted(factors, key=lambda name: (-factors[name].element_size(), name)):
        factor = factors[name]
        begin, end = end, end + factor.numel() * factor.element_size()
        layout[name] = {"dtype": DTYPES[factor.dtype], "shape": list(factor.shape), "data_offsets": [begin, end]}
    return layout


def _header(layout: Mapping[str, dict], entries: Mapping[str, dict], settings: Mapping[str, str] | None) -> bytes:
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "bases": json.dumps(entries),
        "settings": json.dumps(dict(settings or {})),
    }
    return json.dumps({"__metadata__": metadata, **layout}, separators=(",", ":")).encode()


def check_path(path: str | os.PathLike[str]) -> str:
    """Return the path of bases as text; ValueError for what is none."""
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise ValueError(f"bases must be the path of a file, got {path!r}")
    return os.fspath(path)


def check_folder(path: str | os.PathLike[str]) -> None:
    """Raise FileNotFoundError where the folder for the bases is missing, ValueError for what is no path."""
    check_path(path)
    if not Path(path).parent.is_dir():
        raise FileNotFoundError(f"bases: no directory {Path(path).parent} to keep {Path(path).name} in")


def before(path: Path) -> Path:
    """Return the path that bases have while they are being replaced."""
    return path.with_name(f".{path.name}.old")


def is_stored(path: str | os.PathLike[str]) -> bool:
    """Return True where there are bases, also after a write that stopped while it replaced them."""
    return Path(path).exists() or before(Path(path)).exists()


def add_bases(path: str | os.PathLike[str], bases: Mapping[str, SpectralBasis]) -> None:
    """Add bases to a file, beside those of other weights; those of the same names take their place."""
    kept = load_bases(path)
    with _damage_named(path), safe_open(path, framework="pt") as file:
        settings = json.loads((file.metadata() or {}).get("settings", "{}"))
    save_bases(path, {**kept, **bases}, settings)
