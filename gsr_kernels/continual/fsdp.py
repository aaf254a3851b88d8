"""Model that FSDP2 shards over the ranks, in the Trainer, which would have Accelerate do so, on GPUs alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from gsr_kernels.continual.ranks import first, world
from gsr_kernels.continual.trainer import TaskTrainer
from gsr_kernels.distributed.placements import shard_placement_fn

# in a checkpoint: the weights, the optimizer's state, the scheduler's
WEIGHTS, MOMENTS, SCHEDULE = "weights", "moments", "scheduler.pt"


def shard(model: Any, bf16: bool) -> None:
    """Leave each rank its shards of every layer and of what is outside; ``bf16`` is what they compute in."""
    mesh = init_device_mesh(model.device.type, (world(),))
    shared: dict[str, Any] = {"mesh": mesh, "shard_placement_fn": shard_placement_fn}
    layers, outside = MixedPrecisionPolicy(), MixedPrecisionPolicy()
    if bf16:
        layers = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
        outside = MixedPrecisionPolicy(torch.bfloat16, torch.float32, torch.float32)
    names = model._no_split_modules or ()
    # the innermost first
    for module in reversed(list(model.modules())):
        if type(module).__name__ in names:
            fully_shard(module, mp_policy=layers, **shared)
    fully_shard(model, mp_policy=outside, **shared)
    # Accelerate takes it as it is
    model._is_accelerate_prepared = True


class ShardedTrainer(TaskTrainer):
    """Trainer whose checkpoints hold the shards of all ranks, each written by the rank that has it."""

    model: Any
    optimizer: Any
    lr_scheduler: Any

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the weights, for a checkpoint."""
        folder = Path(str(output_dir or self.args.output_dir))
        dcp.save(get_model_state_dict(self.model), checkpoint_id=folder / WEIGHTS)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        moments = get_optimizer_state_dict(self.model, self._innermost)
        dcp.save(moments, checkpoint_id=Path(output_dir) / MOMENTS)
        if first():
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        weights = get_model_state_dict(self.model)
        dcp.load(weights, checkpoint_id=Path(resume_from_checkpoint) / WEIGHTS)
        set_model_state_dict(self.model, weights)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            moments = get_optimizer_state_dict(self.model, self._innermost)
            dcp.load(moments, checkpoint_id=Path(checkpoint) / MOMENTS)
            set_optimizer_state_dict(self.model, self._innermost, moments)
            self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULE, weights_only=True))

    @property
    def _innermost(self) -> Any:
        # inside Accelerate's wrapper
        return self.optimizer.optimizer
