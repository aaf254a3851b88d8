"""Megatron-Core's distributed optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.dist_checkpointing import ShardedObject
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.cpu_offloading import HybridDeviceOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.utils import unwrap_model
from torch import nn

from gsr_kernels.distributed.flat import FlatLayout, Placed, flat_engine, mesh_of
from gsr_kernels.optim import Handle
from gsr_kernels.optim import attach as attach_flat
from gsr_kernels.optim.state import KEY

# the methods of DistributedOptimizer that a checkpoint goes through
CARRYING = "load_state_dict", "sharded_state_dict", "_init_optimizer_states_with_dummy_values"


def attach(optimizer: MegatronOptimizer, method: Any = None, **settings: Any) -> Handle:
    """Put GSR between a Megatron-Core model's gradients and its optimizer, from the next ``optimizer.step()`` on.

        optimizer = get_megatron_optimizer(config, [model])
        handle = attach(optimizer, rho=0.5, bases="bases/task-1")

    Every rank must call, when the weights of the task before are loaded and ahead of ``optimizer.load_state_dict()``,
    which brings back what ``optimizer.state_dict()`` and ``sharded_state_dict()`` kept of the method. Gradients are
    rescaled in the optimizer's float32 shards, after accumulation and clipping, a weight's over all ranks of tensor and
    data parallelism; a step that is skipped for an overflow does not count. Each pipeline stage is on its own, with
    ``-stage-`` and its number behind the name of ``bases``.

    Args:
        optimizer: what ``get_megatron_optimizer()`` returns with ``use_distributed_optimizer=True``.
        method: as for ``gsr_kernels.attach``.
        settings: as for ``gsr_kernels.attach``.

    Raises TypeError and ValueError for what is not supported, by its name in Megatron's configuration.
    """
    if not isinstance(optimizer, MegatronOptimizer):
        raise TypeError(
            f"optimizer must be what get_megatron_optimizer() returns, got {type(optimizer).__name__}; for an "
            "optimizer of torch there is gsr_kernels.attach(model, optimizer, ...)"
        )
    own = _check(optimizer)
    stages = parallel_state.get_pipeline_model_parallel_world_size()
    if stages > 1 and settings.get("nonfinite") == "error":
        raise ValueError(
            "nonfinite: the other stages of a pipeline would not hear of the error, and wait; leave it at 'skip'"
        )
    if settings.get("shard_bases"):
        raise ValueError("shard_bases: a rank has the bases of its own shards alone; leave it out")
    stage = parallel_state.get_pipeline_model_parallel_rank()
    if stages > 1 and settings.get("bases") is not None:
        settings["bases"] = f"{settings['bases']}-stage-{stage}"
    module = unwrap_model(own.model_chunks[0])
    handle = attach_flat(flat_engine(module, _placed(own, module)), own.optimizer, method, **settings)
    _carry(own, handle, stage if stages > 1 else None)
    return handle


def _check(optimizer: Any) -> DistributedOptimizer:
    """Return the one optimizer within; raise for a configuration that is not supported."""
    chained = getattr(optimizer, "chained_optimizers", [optimizer])
    own = chained[0] if chained else optimizer
    distributed = isinstance(own, DistributedOptimizer)
    chunks = getattr(own, "model_chunks", [])
    fsdp = distributed and own.ddp_config.use_megatron_fsdp
    # num_moe_experts makes such parameters too
    experts = any(not getattr(one, "allreduce", True) for chunk in chunks for one in chunk.parameters())
    problems = [
        (not distributed, f"{type(own).__name__}: set use_distributed_optimizer=True, with Adam"),
        (any(one.config.num_moe_experts for one in chunks), "num_moe_experts: use fully_shard (FSDP2)"),
        (experts, "layers of expert parallelism: use fully_shard (FSDP2)"),
        (len(chained) > 1 or len(chunks) > 1, "a virtual pipeline: one chunk of the model for each stage"),
        (fsdp, "use_megatron_fsdp: leave it out, or use torch's fully_shard (FSDP2)"),
        (getattr(own, "is_stub_optimizer", False), "a rank with nothing to train: other stages, or targets"),
        (
            isinstance(getattr(own, "optimizer", None), HybridDeviceOptimizer),
            "optimizer_cpu_offload: leave it out; basis_device='cpu' keeps the bases on the CPU",
        ),
        (
            distributed and own.config.use_precision_aware_optimizer,
            "use_precision_aware_optimizer, which has no float32 shards: leave it out",
        ),
    ]
    for found, problem in problems:
        if found:
            raise TypeError(f"optimizer: not supported with a method: {problem}")
    if own.optimizer.state:
        raise ValueError(
            "optimizer has taken steps, or loaded a checkpoint: call attach() right after get_megatron_optimizer() and "
            "the loading of pretrained weights; handle.refresh() begins a later task"
        )
    return own


def _placed(optimizer: Any, module: nn.Module) -> Iterator[Placed]:
    """Yield each trained parameter, its float32 shard, and how the whole weight lies on the ranks of both kinds.

    Where this rank has nothing of one any other shard stands for the empty one, so that it is stepped.
    """
    tensor, data = optimizer.tp_group, optimizer.data_parallel_group
    both: Any = data
    if tensor.size() > 1:
        both = parallel_state.get_tensor_and_data_parallel_group(False, with_context_parallel=True)
        if both is None or both.size() != tensor.size() * data.size():
            raise TypeError(
                "optimizer: not supported with a method: tensor parallelism with num_distributed_optimizer_instances "
                "or process groups of one's own: use initialize_model_parallel() with one instance"
            )
    shards: dict[torch.Tensor, torch.Tensor] = {}
    for models, parts in (
        (optimizer.model_float16_groups, optimizer.shard_fp32_from_float16_groups),
        (optimizer.model_fp32_groups, optimizer.shard_fp32_groups),
    ):
        shards.update(zip(chain(*models), chain(*parts)))
    trained: list[Any] = [parameter for parameter in module.parameters() if parameter.requires_grad]
    ranges = [optimizer._get_model_param_range_map(one)["param"] if one in shards else None for one in trained]
    gathered: list[Any] = [None] * both.size()
    own = [(one.start, one.end) if one else (0, 0) for one in ranges]
    dist.all_gather_object(gathered, (tensor.rank(), own), group=both)
    if any(not any(map(any, intervals)) for _, intervals in gathered):
        raise ValueError(
            "optimizer: a rank has no part of the weights, which are too few for the ranks: use less data parallelism"
        )
    of_rank = dict(zip(dist.get_process_group_ranks(both), gathered))
    other = next(iter(shards.values()))
    for index, parameter in enumerate(trained):
        cut = tensor.size() > 1 and getattr(parameter, "tensor_model_parallel", False)
        group, shape, each = both if cut else data, list(parameter.shape), parameter.numel() if cut else 0
        if cut:
            shape[parameter.partition_dim] *= tensor.size()
        found = [of_rank[rank] for rank in dist.get_process_group_ranks(group)]
        blocks = tuple((tuple(each * part + bound for bound in intervals[index]),) for part, intervals in found)
        parts = tensor.size() if cut and parameter.partition_dim else 1
        layout = FlatLayout(torch.Size(shape), mesh_of(group, parameter.device.type), blocks=blocks, parts=parts)
        yield parameter, shards.get(parameter, other), layout


def _carry(optimizer: Any, handle: Handle, stage: int | None) -> None:
    """Have the optimizer's checkpoints carry the handle's state, which Megatron writes and does not read."""
    load, sharded, fill = (getattr(optimizer, name) for name in CARRYING)

    def load_state_dict(saved: dict[str, Any]) -> None:
        load(saved)
        # Megatron-Core 0.16 leaves all states of torch's Adam one counter, of the wrong step, which each would count up
        inner = optimizer.optimizer
        for group in inner.param_groups:
            for kept in (inner.state.get(one, {}) for one in group["params"]):
                if "step" in kept and "step" in group:
                    kept["step"] = torch.full_like(kept["step"], group["step"])
        if KEY in saved["optimizer"] and Handle.of(optimizer.optimizer) is handle:
            handle.load_state_dict(saved["optimizer"][KEY])

    def sharded_state_dict(
        model_sharded_state_dict: Any, is_loading: bool = False, *args: Any, **settings: Any
    ) -> dict[str, Any]:
        # without a state of torch's Adam Megatron-Core 0.16 fails
        if is_loading and not optimizer.optimizer.state:
            fill_state()
        found = sharded(model_sharded_state_dict, is_loading, *args, **settings)
        own = found["optimizer"]
        # of what is no ShardedObject Megatron writes the first stage's alone
        if stage is not None and isinstance(own, dict) and KEY in own:
            replica = (0, optimizer.tp_group.rank(), optimizer.data_parallel_group.rank())
            own[KEY] = ShardedObject(f"optimizer.{KEY}.stage_{stage}", own[KEY], (1,), (0,), replica_id=replica)
        return found

    def fill_state() -> Any:
        # a step of zero gradients: at rate 0 the method takes it for what it is, and weight decay moves nothing
        rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        try:
            return fill()
        finally:
            for group, rate in zip(optimizer.param_groups, rates):
                group["lr"] = rate

    for name, act in zip(CARRYING, (load_state_dict, sharded_state_dict, fill_state)):
        setattr(optimizer, name, act)
