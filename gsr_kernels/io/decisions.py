"""Decisions that a machine makes once, kept on its disk."""

from __future__ import annotations

import json
import os
import threading
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from gsr_kernels.io.atomic import replacing


class Decisions:
    """A file of what was decided, by machine and key, beside what other programs cache for this user."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._known: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()

    def file(self) -> Path:
        """Return where the decisions are kept."""
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(home) / "gsr_kernels" / self._name

    def known(self, machine: str) -> dict[str, Any]:
        """Return what was decided on a machine, by key."""
        if machine not in self._known:
            self._known[machine] = dict(self._read().get(machine, {}))
        return self._known[machine]

    def keep(self, machine: str, decided: dict[str, Any], on_disk: bool = True) -> None:
        """Add decisions. A home that cannot be written to costs the next process a probe, no more."""
        with self._lock:
            self.known(machine).update(decided)
            if not on_disk:
                return
            try:
                self.file().parent.mkdir(parents=True, exist_ok=True)
                with replacing(self.file()) as partial:
                    # other processes, ranks among them, decide too
                    there = self._read()
                    partial.write_text(json.dumps({**there, machine: {**there.get(machine, {}), **decided}}, indent=1))
            except (OSError, RuntimeError):
                return

    def _read(self) -> dict[str, dict[str, Any]]:
        """Return what the file says: of a damaged one nothing."""
        try:
            return {machine: dict(decided) for machine, decided in json.loads(self.file().read_text()).items()}
        except (OSError, RuntimeError, ValueError, AttributeError, TypeError):
            return {}


def name_of(device: torch.device, *parts: str) -> str:
    """Return what decides how fast a GPU is: its make, its driver, and the versions of what runs on it."""
    if device.type != "cuda":
        return device.type
    found = torch.cuda.get_device_properties(device)
    make = (found.name, found.major, found.minor, found.multi_processor_count, found.total_memory)
    versions = (import_module("gsr_kernels").__version__, torch.__version__, torch.version.cuda or torch.version.hip)
    driver = getattr(torch._C, "_cuda_getDriverVersion", int)()
    return "-".join(map(str, (*make, driver, *versions, *parts)))
