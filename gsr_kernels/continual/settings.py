"""What decides the numbers of a sequential run, beside the rows of its tasks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from gsr_kernels.continual.methods import MethodSettings, check_methods
from gsr_kernels.continual.model import ModelConfig


@dataclass(frozen=True)
class Settings:
    """The same for every method and seed. Raises ValueError, naming the field, for what cannot be."""

    # bounds are named among them
    methods: tuple[str, ...] = ("seqft", "gsr")
    method: MethodSettings = field(default_factory=MethodSettings)
    seeds: int = 3
    steps: int = 100
    # of 1e-4, 3e-4, 5e-4, 1e-3 and 2e-3 the lowest where SeqFT gains three quarters of its best on every built-in task
    lr: float = 5e-4
    batch: int = 32
    pretrain_steps: int = 500
    pretrain_lr: float = 3e-3
    model: ModelConfig = field(default_factory=ModelConfig)

    def __post_init__(self) -> None:
        check_methods(self.methods)
        for name in ("seeds", "steps", "batch", "pretrain_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lr", "pretrain_lr"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be positive and finite, got {value}")
