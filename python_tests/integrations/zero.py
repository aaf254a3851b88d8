"""DeepSpeed's engine on a CPU: what the ranks do in the test beside this file."""

import gc
import os
import signal
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn

import gsr_kernels
from gsr_kernels import SpectralBasis
from gsr_kernels.methods import EWC
from python_tests.distributed.decisions import refused
from python_tests.distributed.matrices import sent_in_steps
from python_tests.distributed.storage import Decomposed
from python_tests.distributed.training import BATCH, distance, make_model

# a rate and a norm to clip to that move the weights well beyond bfloat16's rounding
RATE, CLIP, MICRO, STEPS = 0.6, 0.3, 2, 3


def prepare():
    """Tell DeepSpeed of this rank, and have it compile nothing to speed up messages inside one machine."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    rank, world = str(dist.get_rank()), str(dist.get_world_size())
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_SIZE": world}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    # nor for its own Muon, whose functions it compiles where they are defined
    with mock.patch("torch.compile", lambda function: function):
        import deepspeed
        import deepspeed.runtime.zero.muon.original_muon

    deepspeed.ops.__compatible_ops__ = {}
    # ZeRO 3 collects garbage as it begins, which need not look through all that was imported
    gc.freeze()


def groups(model):
    """Two groups, with a matrix in each; the partitions of the first split a row."""
    first, *rest = [p for p in model.parameters() if p.ndim > 1]
    return [{"params": [first]}, {"params": rest + [p for p in model.parameters() if p.ndim < 2]}]


@contextmanager
def in_double():
    """Has engines keep float64, which DeepSpeed 0.19 has no setting for: its settings know float32 and 16 bits alone.

    Its norm for clipping is float32 in any case.
    """
    from deepspeed import DeepSpeedEngine
    from deepspeed.runtime.base_optimizer import ZeROOptimizer
    from deepspeed.runtime.zero.partition_parameters import InsertPostInitMethodToModuleSubClasses as Init

    configure = ZeROOptimizer._configure_master_weights

    def master_weights(*args, **settings):
        configure(*args, **settings)
        return torch.float64

    with (
        mock.patch.object(DeepSpeedEngine, "get_data_types", lambda engine: (torch.float64, torch.float64)),
        mock.patch.object(DeepSpeedEngine, "communication_data_type", torch.float64),
        mock.patch.object(ZeROOptimizer, "_configure_master_weights", master_weights),
        # of parameters that are made while it is open, which none is here
        mock.patch.object(Init, "_set_dtype", lambda init, *settings: setattr(init, "dtype", torch.float32)),
    ):
        yield


def make_engine(stage, optimizer=torch.optim.SGD, bf16=False, dtype=torch.float32, **more):
    """An engine that steps an optimizer of torch; None for none."""
    prepare()
    import deepspeed

    model = make_model(dtype=dtype)
    settings = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
    config = {
        "train_micro_batch_size_per_gpu": BATCH // dist.get_world_size(),
        "gradient_accumulation_steps": MICRO,
        "gradient_clipping": CLIP,
        "bf16": {"enabled": bf16},
        "zero_allow_untested_optimizer": True,
        **more,
        "zero_optimization": {"stage": stage, **more.get("zero_optimization", {})},
    }
    stepped = optimizer and optimizer(groups(model), RATE if settings else 0.01, **settings)
    return deepspeed.initialize(model=model, optimizer=stepped, config=config)[0]


def attach(engine, **settings):
    from gsr_kernels.integrations.deepspeed import attach

    return attach(engine, **{"rho": 0.7, **settings})


def batch(step, micro):
    return torch.randn(BATCH, 6, generator=torch.Generator().manual_seed(10 * step + micro))


def train(engine, first, last, factor=1.0):
    rank, rows = dist.get_rank(), BATCH // dist.get_world_size()
    for step in range(first, last):
        for micro in range(MICRO):
            mine = batch(step, micro)[rank * rows : (rank + 1) * rows] * factor
            found = engine(mine.to(next(engine.module.parameters()).dtype))
            engine.backward(found.to(torch.promote_types(found.dtype, torch.float32)).square().sum() / rows)
            engine.step()


def alone(out_of_span, begun=torch.float32):
    """What one process trains in float32 with clipping, from weights of a dtype; in float64 without."""
    model = make_model(dtype=begun)
    model = model.to(torch.promote_types(begun, torch.float32))
    optimizer = torch.optim.SGD(groups(model), RATE, momentum=0.9)
    gsr_kernels.attach(model, optimizer, rho=0.7, out_of_span=out_of_span)
    for step in range(STEPS):
        optimizer.zero_grad()
        for micro in range(MICRO):
            (model(batch(step, micro).to(model[0].weight.dtype)).square().sum() / BATCH / MICRO).backward()
        if begun != torch.float64:
            assert nn.utils.clip_grad_norm_(model.parameters(), CLIP) > CLIP or step
        optimizer.step()
    return model


def whole(engine):
    """The weights in the dtype of the partitions, in a model of one process."""
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_get_full_fp32_param

    held = list(engine.module.parameters())
    found = make_model(dtype=torch.promote_types(held[0].dtype, torch.float32))
    for parameter, mine in zip(found.parameters(), held):
        # of DeepSpeed's functions the one rounds to float32, the other gives what the model computes with
        with GatheredParameters(mine, enabled=mine.dtype == torch.float64):
            weights = mine if mine.dtype == torch.float64 else safe_get_full_fp32_param(mine)
            parameter.data = weights.detach().clone()
    return found


def agreement():
    """Distances from one process, messages of a step for each group, steps counted, and weights that share a row.

    By dtype, stage and option.
    """
    found = {}
    for dtype, held, more in (
        (torch.float32, nullcontext(), {}),
        (torch.float64, in_double(), {"gradient_clipping": 0.0, "zero_optimization": {"reduce_scatter": False}}),
    ):
        with held:
            for out_of_span in ("keep", "drop"):
                reference = alone(out_of_span, dtype)
                for stage in (1, 2, 3):
                    engine = make_engine(stage, dtype=dtype, **more)
                    handle = attach(engine, out_of_span=out_of_span)
                    train(engine, 0, STEPS)
                    far = distance(whole(engine), reference)
                    steps = handle.state_dict()["steps"], [weight.steps for weight in handle.weights]
                    inside = [weight.scheme.layout._before() for weight in handle.weights]
                    sent = sent_in_steps(engine.optimizer.optimizer, train, engine, STEPS, STEPS + 1)
                    found[dtype, stage, out_of_span] = far, sent, steps, sum(map(bool, inside))
    return found


def in_bf16():
    """Distances of bfloat16 engines, with GSR and without, from one process; then a step that overflows."""
    reference, found = alone("keep", torch.bfloat16), {}
    for stage in (1, 2, 3):
        bare, engine = make_engine(stage, bf16=True), make_engine(stage, bf16=True)
        handle = attach(engine, out_of_span="keep")
        for one in (bare, engine):
            train(one, 0, STEPS)
        before = whole(engine)
        train(engine, STEPS, STEPS + 1, float("nan"))
        skipped = distance(whole(engine), before), handle.state_dict()["steps"], engine.skipped_steps
        found[stage] = distance(before, reference), distance(whole(bare), reference), skipped
    return found


def resumed(folder):
    """Weights decomposed when going on from a checkpoint, steps then, and if the weights have the same bits."""
    found = {}
    for stage in (1, 2, 3):
        path = Path(folder, str(stage))
        path.mkdir(exist_ok=True)
        engine = make_engine(stage, torch.optim.AdamW)
        attach(engine, bases=path / "bases")
        train(engine, 0, 2)
        engine.save_checkpoint(str(path / "checkpoint"))
        train(engine, 2, 4)
        reached = whole(engine)
        if dist.get_rank() == 0:
            torch.save(reached, path / "reached")
        other = make_engine(stage, torch.optim.AdamW)
        with Decomposed() as decomposed:
            handle = attach(other, bases=path / "bases")
            other.load_checkpoint(str(path / "checkpoint"))
            steps = handle.state_dict()["steps"]
            train(other, 2, 4)
        same = all(map(torch.equal, reached.parameters(), whole(other).parameters()))
        found[stage] = decomposed.count, steps, same
    return found


def on_more_ranks(folder):
    """Weights decomposed, steps and distance when these ranks go on from the checkpoints of ``resumed``."""
    prepare()
    from deepspeed.checkpoint import ds_to_universal

    found = {}
    for stage in (1, 2, 3):
        path = Path(folder, str(stage))
        steps = str(path / "checkpoint" / "global_step2")
        if dist.get_rank() == 0:
            sys.argv = ["", "--input_folder", steps, "--output_folder", f"{steps}_universal", "--inject_missing_state"]
            sys.argv += ["--num_extract_workers", "1", "--num_merge_workers", "1"]
            ds_to_universal.main(ds_to_universal.parse_arguments())
        dist.barrier()
        engine = make_engine(stage, torch.optim.AdamW, checkpoint={"load_universal": True})
        with Decomposed() as decomposed:
            handle = attach(engine, bases=path / "bases")
            engine.load_checkpoint(str(path / "checkpoint"))
            steps = handle.state_dict()["steps"]
            train(engine, 2, 4)
        reached = torch.load(path / "reached", weights_only=False)
        found[stage] = decomposed.count, steps, distance(whole(engine), reached)
    return found


def die_in_a_step(folder, victim):
    """One rank is killed inside the second step; the others say what they met."""
    engine = make_engine(2)
    attach(engine, bases=Path(folder, "bases"))
    train(engine, 0, 1)
    if dist.get_rank() == victim:
        engine.optimizer.optimizer.step = lambda: os.kill(os.getpid(), signal.SIGKILL)
    train(engine, 1, 2)


def beside_fsdp2():
    """The variants that the bench times, each with a step's milliseconds."""
    prepare()
    from bench.cases.zero_cpu import step_times

    sizes = {"vocab_size": 30, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1}
    return step_times({"model_type": "llama", **sizes, "num_attention_heads": 2}, 1)


def second_task():
    """The largest error of the singular values of a second task's bases, and the steps counted."""
    engine = make_engine(3, torch.optim.AdamW)
    handle = attach(engine, out_of_span="keep")
    train(engine, 0, 2)
    weights = {name: W.detach() for name, W in whole(engine).named_parameters()}
    handle.refresh(reset_moments=True)
    errors = [basis.S - SpectralBasis.of(weights[name]).S for name, basis in handle.bases.items()]
    handle.refresh_every = 2
    train(engine, 2, 4)
    return max(one.abs().max().item() for one in errors), handle.state_dict()["steps"]


def by_trainer(folder):
    """Hugging Face's Trainer, then another from its checkpoint: weights decomposed, steps, gsr in the log, same bits.

    And what attach_to() says where DeepSpeed is to make the optimizer.
    """
    prepare()
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    from gsr_kernels.integrations.transformers import attach_to

    zero = {"stage": 2}
    config = {
        "train_micro_batch_size_per_gpu": "auto",
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
    }
    sizes = {"vocab_size": 30, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1}
    rows = [{"input_ids": [i, i + 1, i + 2], "labels": [i, i + 1, i + 2]} for i in range(16)]

    def trainer(**more):
        settings = {"max_steps": 4, "save_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 2}
        quiet = {"report_to": [], "disable_tqdm": True, "seed": 1}
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2))
        arguments = TrainingArguments(folder, deepspeed={**config, **more}, learning_rate=1e-2, **settings, **quiet)
        return Trainer(model, arguments, train_dataset=rows)

    found = []
    for resume in (None, f"{folder}/checkpoint-2"):
        one = trainer()
        with Decomposed() as decomposed:
            callback = attach_to(one, rho=0.7, out_of_span="keep", bases=Path(folder, "bases"))
            one.train(resume_from_checkpoint=resume)
        logged = one.state.log_history[-2]["gsr/skipped_nonfinite"]
        found.append((decomposed.count, callback.handle.state_dict()["steps"], logged, list(one.model.parameters())))
    same = all(map(torch.equal, found[0][-1], found[1][-1]))
    own = trainer(optimizer={"type": "AdamW", "params": {"lr": 0.01}})
    return [one[:-1] for one in found], same, refused(attach_to, own, rho=0.7)


def refusals():
    """Errors of attach(), by what is wrong."""
    stepped = make_engine(2)
    train(stepped, 0, 1)
    on_cpu = {"zero_force_ds_cpu_optimizer": False, "zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
    # DeepSpeed's own reading and writing is compiled where the engine is made
    nvme, elastic, onebit = make_engine(3), make_engine(2), make_engine(2)
    nvme._config.zero_config.offload_param = {"device": "nvme"}
    elastic._config.zero_config.elastic_checkpoint = True
    onebit.optimizer.optimizer = type("OnebitAdam", (), {"__module__": "deepspeed.runtime.fp16.onebit.adam"})()
    fresh, pipeline = make_engine(2), make_engine(2)
    from deepspeed.pipe import PipelineModule

    pipeline.module = PipelineModule.__new__(PipelineModule)
    cases = {
        "model": (fresh.module, {}),
        "stepped": (stepped, {}),
        "offload": (make_engine(2, **on_cpu), {}),
        "nvme": (nvme, {}),
        "elastic": (elastic, {}),
        "1-bit": (onebit, {}),
        "stage": (make_engine(0), {}),
        "no optimizer": (make_engine(3, None), {}),
        "pipeline": (pipeline, {}),
        "BF16_Optimizer": (make_engine(1, bf16=True, data_types={"grad_accum_dtype": "fp32"}), {}),
        "nonfinite": (fresh, {"nonfinite": "error"}),
        "EWC": (fresh, {"method": EWC(lam=1.0), "rho": None}),
    }
    return {name: refused(attach, engine, **settings) for name, (engine, settings) in cases.items()}
