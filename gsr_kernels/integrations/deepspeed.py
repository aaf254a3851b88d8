"""DeepSpeed's engine with ZeRO 1, 2 or 3."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import accumulate
from typing import Any

from deepspeed import DeepSpeedEngine
from deepspeed.pipe import PipelineModule
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch.optim import Optimizer

from gsr_kernels.distributed.flat import Placed, flat_engine, flat_layout, mesh_of
from gsr_kernels.optim import Handle
from gsr_kernels.optim import attach as attach_flat
from gsr_kernels.optim.state import KEY


def attach(engine: DeepSpeedEngine, method: Any = None, **settings: Any) -> Handle:
    """Put GSR between a DeepSpeed engine's gradients and its optimizer, from the next ``engine.step()`` on.

        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        handle = attach(engine, rho=0.5, bases="bases/task-1")

    Every rank must call, right after ``deepspeed.initialize()`` and before ``engine.load_checkpoint()``, which brings
    back what ``engine.save_checkpoint()`` kept of the method. Gradients are rescaled in the float32 partitions, after
    accumulation and clipping; a step that DeepSpeed skips for an overflow does not count. With one process any method
    on single weights is supported.

    Args:
        engine: with ZeRO 1, 2 or 3; the optimizer is the user's.
        method: as for ``gsr_kernels.attach``.
        settings: as for ``gsr_kernels.attach``.

    Raises TypeError and ValueError for what is not supported, by its name in DeepSpeed's configuration.
    """
    if not isinstance(engine, DeepSpeedEngine):
        raise TypeError(f"engine must be what deepspeed.initialize() returns first, got {type(engine).__name__}")
    if engine.global_steps:
        raise ValueError(
            f"engine has taken {engine.global_steps} steps: call attach() right after deepspeed.initialize(), before "
            "load_checkpoint(); handle.refresh() begins a later task"
        )
    return attach_engine(engine, method, **settings)


def attach_engine(engine: DeepSpeedEngine, method: Any = None, **settings: Any) -> Handle:
    """``attach`` to an engine that may have loaded a checkpoint."""
    if settings.get("nonfinite") == "error":
        raise ValueError(
            "nonfinite: DeepSpeed steps one group of parameters after another, so that an error would come when some "
            "have moved; leave it at 'skip'"
        )
    _check(engine)
    zero = engine.optimizer
    handle = attach_flat(flat_engine(engine.module, STAGES[type(zero)](zero)), zero.optimizer, method, **settings)
    handle._hooks += [zero.optimizer.register_state_dict_post_hook(_into_group), _Loading(engine, handle)]
    return handle


def _into_group(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Put the method's state where a universal checkpoint keeps it: of all that is no shard it has the groups alone."""
    saved["param_groups"][0][KEY] = saved[KEY]


class _Loading:
    """Gives the handle the state that a checkpoint has left in the optimizer's groups, now and after every load."""

    def __init__(self, engine: Any, handle: Handle) -> None:
        self.engine, load = engine, engine.load_checkpoint

        def load_checkpoint(*args: Any, **kwargs: Any) -> Any:
            loaded = load(*args, **kwargs)
            take_up()
            return loaded

        def take_up() -> None:
            optimizer = engine.optimizer.optimizer
            # of a universal checkpoint ZeRO 3 gives all groups the same count of steps, which each would advance, and
            # the settings of the first
            for state in optimizer.state.values():
                if "step" in state:
                    state["step"] = deepcopy(state["step"])
            states = [group.pop(KEY, None) for group in optimizer.param_groups]
            if states[0] is not None:
                handle.load_state_dict(states[0])

        engine.load_checkpoint = load_checkpoint
        take_up()

    def remove(self) -> None:
        """Leave loading to the engine again."""
        del self.engine.load_checkpoint


def _check(engine: Any) -> None:
    """Raise for a configuration that is not supported."""
    zero, config = engine.optimizer, engine._config.zero_config
    inner = getattr(zero, "optimizer", None)
    offload = {"offload_optimizer": config.offload_optimizer, "offload_param": config.offload_param}
    moved = [name for name, one in offload.items() if one and one.device != "none"]
    moe = engine.has_moe_layers or getattr(zero, "has_moe_layers", False)
    problems = [
        (isinstance(engine.module, PipelineModule), "pipeline parallelism: use fully_shard (FSDP2)"),
        (engine.mpu is not None or engine.autotp_size() > 1, "tensor parallelism: use fully_shard (FSDP2) over it"),
        (moe, "DeepSpeed's own layers of experts: use fully_shard (FSDP2)"),
        (moved, f"{' and '.join(moved)}: set device to 'none'; basis_device='cpu' keeps the bases on the CPU"),
        (not config.stage, "zero_optimization.stage 0: set it to 1, 2 or 3"),
        (inner is None, "an engine without an optimizer: give deepspeed.initialize() one, as torch.optim.AdamW"),
        (
            type(zero) not in STAGES,
            f"{type(zero).__name__}: in bf16 with ZeRO 1 leave out data_types.grad_accum_dtype",
        ),
        # 1-bit Adam and its like, Muon
        (type(inner).__module__.startswith("deepspeed.runtime"), f"{type(inner).__name__}: use torch.optim.AdamW"),
        (config.elastic_checkpoint, "elastic_checkpoint, which drops what a method keeps: leave it out"),
    ]
    for found, problem in problems:
        if found:
            raise TypeError(f"engine: not supported with a method: {problem}")


def _stages_1_and_2(zero: Any) -> Iterator[Placed]:
    """Yield each trained parameter, the partition of its group on this rank, and how it lies there."""
    for i, parameters in enumerate(zero.round_robin_bit16_groups):
        buffer, group = zero.single_partition_of_fp32_groups[i], zero.real_dp_process_group[i]
        bounds = [0, *accumulate(part.numel() for part in zero.parallel_partitioned_bit16_groups[i])]
        mesh = mesh_of(group, buffer.device.type)
        for parameter, first in zip(parameters, zero.round_robin_bit16_offsets[i]):
            yield parameter, buffer, flat_layout(parameter.shape, mesh, first, bounds, group.rank(), 0)


def _stage_3(zero: Any) -> Iterator[Placed]:
    """Yield the same of ZeRO 3, where each parameter is partitioned by itself."""
    for i, parameters in enumerate(zero.fp16_groups):
        buffer, group, begins = zero.fp32_partitioned_groups_flat[i], zero.sub_group_process_groups[i], 0
        for parameter in parameters:
            size = parameter.partition_numel()
            bounds = [index * size for index in range(group.size() + 1)]
            mesh = mesh_of(group, buffer.device.type)
            yield parameter, buffer, flat_layout(parameter.ds_shape, mesh, 0, bounds, group.rank(), begins)
            begins += size


# by the class of DeepSpeed's optimizer
STAGES: dict[type, Callable[[Any], Iterator[Placed]]] = {
    DeepSpeedZeroOptimizer: _stages_1_and_2,
    DeepSpeedZeroOptimizer_Stage3: _stage_3,
}
