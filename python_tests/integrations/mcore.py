"""Megatron-Core's optimizer on a CPU: what the ranks do in the test beside this file."""

import queue
import warnings
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn
from torch.overrides import TorchFunctionMode

import gsr_kernels
from gsr_kernels import SpectralBasis
from gsr_kernels.distributed.flat import mesh_of
from gsr_kernels.methods import EWC, PSP
from python_tests.distributed.decisions import refused
from python_tests.distributed.matrices import sent_in_steps
from python_tests.distributed.storage import Decomposed
from python_tests.distributed.training import BATCH, distance

# a norm to clip to, and an eps that lets a gradient's length count
CLIP, EPS, RATE, MICRO, STEPS = 0.3, 0.1, 0.2, 2, 3
SHAPES = {"up": (20, 12), "down": (12, 20), "out": (12, 12)}


staying = ExitStack()


class AsIfCuda(TorchFunctionMode):
    """Has the CPU answer where Megatron-Core asks for CUDA: the types of tensors and the device of new ones."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.cuda:
            return args[0]
        args = tuple(map(self._here, args))
        kwargs = {key: self._here(value) for key, value in (kwargs or {}).items()}
        found = function(*args, **kwargs)
        named = function is torch.Tensor.type and len(args) == 1 and not kwargs
        return found.replace("torch.", "torch.cuda.") if named else found

    def _here(self, value):
        cuda = isinstance(value, str | torch.device) and str(value).startswith("cuda")
        return torch.device("cpu") if cuda else value


def write_here(transforms, use_msc, rank, buckets, results):
    """Write a rank's part of a checkpoint, for which Megatron-Core starts processes."""
    from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

    written, waiting = queue.Queue(), queue.Queue()
    for index, bucket in enumerate(buckets):
        waiting.put(index)
        FileSystemWriterAsync.write_preloaded_data(transforms, index, bucket, written, waiting, use_fsync=False)
    results.put(dict(written.get() for _ in buckets))


@contextmanager
def on_a_cpu():
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    state = {"get_rng_state": lambda device=None: torch.get_rng_state()}
    with (
        warnings.catch_warnings(),
        mock.patch.multiple(
            "torch.cuda", current_device=lambda: torch.device("cpu"), synchronize=lambda: None, **state
        ),
        mock.patch.multiple("torch.cuda.random", **state),
        mock.patch("torch._dynamo.config.disable", True),
        mock.patch.object(filesystem_async, "_get_write_results_queue", queue.Queue),
        mock.patch.object(
            filesystem_async.FileSystemWriterAsync, "write_preloaded_data_multiproc", staticmethod(write_here)
        ),
        AsIfCuda(),
    ):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        yield


def stay_on_a_cpu():
    """Be ``on_a_cpu`` to the end of this process."""
    staying.enter_context(on_a_cpu())


def whole_model(seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    model = nn.ModuleDict({name: nn.Linear(*shape[::-1], bias=False) for name, shape in SHAPES.items()})
    for layer in model.values():
        layer.weight.data = torch.randn(layer.weight.shape, generator=generator).to(dtype).float() / 3
    model.forward = lambda x: model["out"](model["down"](model["up"](x).tanh()).tanh())
    return model


def sizes_now(parallel_state):
    """The ranks of tensor parallelism and the stages of the groups that there are."""
    if not parallel_state.model_parallel_is_initialized():
        return None
    return (
        parallel_state.get_tensor_model_parallel_world_size(),
        parallel_state.get_pipeline_model_parallel_world_size(),
    )


def make(tensor=1, stages=1, seed=0, dtype=torch.float32, frozen=None, wrapping=(), **config):
    """Megatron's model, wrapped, and its optimizer, with the weights of the whole model."""
    from megatron.core import parallel_state
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
    from megatron.core.transformer import MegatronModule, TransformerConfig
    from megatron.core.transformer.module import Float16Module

    if sizes_now(parallel_state) != (tensor, stages):
        # each of Megatron's groups has threads of its own, and it leaves old ones as they are
        groups = dist.distributed_c10d._world.pg_map
        for group in [group for group in groups if group is not dist.group.WORLD]:
            dist.destroy_process_group(group)
        mesh_of.cache_clear()
        parallel_state.destroy_model_parallel()
        parallel_state.initialize_model_parallel(tensor, stages, create_gloo_process_groups=False)
    kind = {torch.bfloat16: {"bf16": True}, torch.float16: {"fp16": True}}.get(dtype, {})
    sizes = {"num_layers": stages, "hidden_size": 12, "num_attention_heads": 4, "pipeline_dtype": dtype}
    settings = TransformerConfig(
        **sizes, **kind, params_dtype=dtype, use_cpu_initialization=True, pipeline_model_parallel_size=stages,
        tensor_model_parallel_size=tensor,
    )  # fmt: skip

    class Model(MegatronModule):
        def __init__(self):
            super().__init__(settings)
            self.pre_process = self.post_process = True
            self.share_embeddings_and_output_weights = False
            plain = {"config": settings, "init_method": nn.init.zeros_, "bias": False, "skip_bias_add": False}
            self.up = ColumnParallelLinear(12, 20, gather_output=False, **plain)
            self.down = RowParallelLinear(20, 12, input_is_parallel=True, **plain)
            self.out = nn.Linear(12, 12, bias=False, dtype=dtype)

        def forward(self, x):
            return self.out(self.down(self.up(x)[0].tanh())[0].tanh())

    model, rank = Model(), parallel_state.get_tensor_model_parallel_rank()
    weights = {name: layer.weight.detach() for name, layer in whole_model(seed).items()}
    for (name, W), dim in zip(weights.items(), (0, 1, None)):
        getattr(model, name).weight.data.copy_(W if dim is None else W.chunk(tensor, dim)[rank])
    if frozen:
        getattr(model, frozen).requires_grad_(False)
    model = Float16Module(settings, model) if kind else model
    ddp = DistributedDataParallelConfig(use_distributed_optimizer=True, grad_reduce_in_fp32=True, **dict(wrapping))
    model = DistributedDataParallel(settings, ddp, model)
    given = {"lr": RATE, "weight_decay": 0.1, "adam_eps": EPS, "clip_grad": CLIP, **kind, **config}
    stepping = OptimizerConfig(**{"use_distributed_optimizer": True, **given})
    return model, get_megatron_optimizer(stepping, [model], use_gloo_process_groups=False)


def attach(optimizer, **settings):
    from gsr_kernels.integrations.megatron import attach

    return attach(optimizer, **{"rho": 0.7, **settings})


def batch(step, micro):
    return torch.randn(BATCH, 12, generator=torch.Generator().manual_seed(10 * step + micro))


def train(model, optimizer, first, last, factor=1.0):
    from megatron.core import parallel_state
    from megatron.core.distributed import finalize_model_grads

    rank, shares = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    rows = BATCH // shares
    for step in range(first, last):
        model.zero_grad_buffer()
        optimizer.zero_grad()
        for micro in range(MICRO):
            mine = batch(step, micro)[rank * rows : (rank + 1) * rows] * factor
            loss = model(mine.to(next(model.parameters()).dtype)).float().square().sum() / rows / MICRO
            optimizer.scale_loss(loss).backward()
        finalize_model_grads([model])
        done, *_ = optimizer.step()
    return done


def alone(out_of_span, begun=torch.float32, frozen=None):
    """What one process trains in float32, from weights of a dtype."""
    model = whole_model(dtype=begun)
    if frozen:
        model[frozen].requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, eps=EPS, weight_decay=0.1)
    gsr_kernels.attach(model, optimizer, rho=0.7, out_of_span=out_of_span)
    for step in range(STEPS):
        optimizer.zero_grad()
        for micro in range(MICRO):
            (model(batch(step, micro)).square().sum() / BATCH / MICRO).backward()
        assert nn.utils.clip_grad_norm_(model.parameters(), CLIP) > CLIP
        optimizer.step()
    return model


def whole(model):
    """The weights in a model of one process."""
    from megatron.core import parallel_state
    from megatron.core.utils import unwrap_model

    found, group = whole_model(), parallel_state.get_tensor_model_parallel_group()
    for (name, layer), dim in zip(found.items(), (0, 1, None)):
        W = getattr(unwrap_model(model), name).weight.detach().float()
        parts = [torch.empty_like(W) for _ in range(group.size())]
        dist.all_gather(parts, W, group=group)
        layer.weight.data = W if dim is None else torch.cat(parts, dim)
    return found


def checked(*checks):
    """The results of several checks, by their names."""
    with on_a_cpu():
        return {check.__name__: check(*arguments) for check, *arguments in checks}


def agreement(folder):
    """Distances from one process, messages of a step, steps counted and weights decomposed.

    By ranks of tensor parallelism and option. With "drop" the first writes the bases, which the others read.
    """
    found, kept = {}, {"keep": None, "drop": Path(folder, "bases-of-any")}
    references = {out_of_span: alone(out_of_span) for out_of_span in ("keep", "drop")}
    for tensor in (1, 4, 2):
        for out_of_span, reference in references.items():
            model, optimizer = make(tensor)
            with Decomposed() as decomposed:
                handle = attach(optimizer, out_of_span=out_of_span, bases=kept[out_of_span])
                train(model, optimizer, 0, STEPS)
            far = distance(whole(model), reference)
            steps = handle.state_dict()["steps"], [weight.steps for weight in handle.weights]
            [sent] = sent_in_steps(optimizer.optimizer, train, model, optimizer, STEPS, STEPS + 1)
            found[tensor, out_of_span] = far, sent, steps, decomposed.count
    return found


def edges():
    """Distances from one process where Megatron overlaps its messages, and with a weight frozen; weights stepped."""
    found = {}
    overlap = {"overlap_grad_reduce": True, "overlap_param_gather": True, "bucket_size": 100}
    for frozen, wrapping in ((None, overlap), ("up", {})):
        reference = alone("keep", frozen=frozen)
        model, optimizer = make(2, frozen=frozen, wrapping=wrapping)
        handle = attach(optimizer, out_of_span="keep")
        train(model, optimizer, 0, STEPS)
        if wrapping:
            model.disable_forward_pre_hook()
        found[frozen] = distance(whole(model), reference), [weight.name for weight in handle.weights]
    return found


def in_16_bits():
    """Distances of 16-bit models, with GSR and without, from one process; then a step that overflows."""
    found = {}
    for dtype in (torch.bfloat16, torch.float16):
        reference = alone("keep", dtype)
        (bare, without), (model, optimizer) = (make(2, dtype=dtype, initial_loss_scale=256.0) for _ in range(2))
        handle = attach(optimizer, out_of_span="keep")
        for one, its in ((bare, without), (model, optimizer)):
            train(one, its, 0, STEPS)
        before = whole(model)
        done = dtype == torch.float16 and train(model, optimizer, STEPS, STEPS + 1, float("nan"))
        skipped = done, distance(whole(model), before), handle.state_dict()["steps"]
        found[dtype] = distance(before, reference), distance(whole(bare), reference), skipped
    return found


def resumed(folder):
    """Weights decomposed when going on from a checkpoint, steps then, if the weights have the same bits, where it was.

    For tensor parallelism on 2 ranks, then for 2 stages of a pipeline that each train a model of their own.
    """
    from megatron.core import dist_checkpointing, parallel_state
    from megatron.core.dist_checkpointing import ShardedObject

    found = {}
    for tensor, stages in ((2, 1), (1, 2)):
        models, path = [], Path(folder, f"{tensor}-{stages}")
        (path / "checkpoint").mkdir(parents=True, exist_ok=True)
        for resume in (False, True):
            model, optimizer = make(tensor, stages, dtype=torch.bfloat16)
            prefix = f"stage{parallel_state.get_pipeline_model_parallel_rank()}."

            def states(kind="dp_reshardable", model=model, optimizer=optimizer, prefix=prefix, **more):
                weights = model.module.sharded_state_dict(prefix=prefix)
                kept = optimizer.sharded_state_dict(weights, metadata={"distrib_optim_sharding_type": kind}, **more)
                return {"model": weights, "optimizer": kept}

            with Decomposed() as decomposed:
                handle = attach(optimizer, bases=path / "bases", out_of_span="keep")
                if resume:
                    saved = dist_checkpointing.load(states(is_loading=True), str(path / "checkpoint"))
                    model.module.load_state_dict({k.removeprefix(prefix): v for k, v in saved["model"].items()})
                    optimizer.load_state_dict(saved["optimizer"])
                    steps = handle.state_dict()["steps"]
                else:
                    train(model, optimizer, 0, 2)
                    dist_checkpointing.save(states(), str(path / "checkpoint"))
                    # another format, which Megatron-Core cannot read with torch's Adam
                    kept = states("fully_reshardable")["optimizer"]["optimizer"]["gsr_kernels"]
                    key = kept.key if isinstance(kept, ShardedObject) else None
                train(model, optimizer, 2, 4)
            models.append(whole(model))
        same = all(map(torch.equal, models[0].parameters(), models[1].parameters()))
        there = sorted(one.name for one in path.glob("bases*"))
        found[tensor, stages] = decomposed.count, steps, same, key, there
    return found


def second_task():
    """The largest error of the singular values of a second task's bases, and the steps counted."""
    model, optimizer = make(2)
    handle = attach(optimizer, out_of_span="keep")
    train(model, optimizer, 0, 2)
    handle.refresh()
    errors = [
        basis.S - SpectralBasis.of(whole(model)[name.split(".")[0]].weight).S for name, basis in handle.bases.items()
    ]
    train(model, optimizer, 2, 4)
    return max(one.abs().max().item() for one in errors), handle.state_dict()["steps"]


def refusals():
    """Errors of attach(), by what is wrong."""
    from megatron.core.optimizer.cpu_offloading import HybridDeviceOptimizer

    model, stepped = make(2)
    train(model, stepped, 0, 1)
    _, fresh = make(2)
    found = {
        "torch's": refused(attach, torch.optim.AdamW(model.parameters())),
        "plain": refused(gsr_kernels.attach, model, fresh, rho=0.5),
        "stepped": refused(attach, stepped),
        "shard_bases": refused(attach, fresh, shard_bases=True),
        "EWC": refused(attach, fresh, method=EWC(lam=1.0), rho=None),
        "PSP": refused(attach, fresh, method=PSP(), rho=None),
        "replicas": refused(attach, make(2, use_distributed_optimizer=False)[1]),
    }
    own = fresh.chained_optimizers[0]
    for changed, name, value in (
        (own.config, "use_precision_aware_optimizer", True),
        (own.ddp_config, "use_megatron_fsdp", True),
        (own.model_chunks[0].config, "num_moe_experts", 4),
        (next(own.model_chunks[0].parameters()), "allreduce", False),
        (own, "model_chunks", own.model_chunks * 2),
        (own, "optimizer", HybridDeviceOptimizer.__new__(HybridDeviceOptimizer)),
    ):
        with mock.patch.object(changed, name, value):
            found[name] = refused(attach, fresh)
    _, staged = make(1, 2)
    found["nonfinite"] = refused(attach, staged, nonfinite="error")
    _, uneven = make(1)
    if dist.get_rank() == 3:
        uneven.chained_optimizers[0].model_fp32_groups = []
    found["few"] = refused(attach, uneven)
    return found
