"""A training step under DeepSpeed's ZeRO 2 beside FSDP2, with GSR and without, on two processes of a CPU."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.optim import Optimizer

from bench.models import model
from bench.optimizers import ADAMW, ATTACHED, work
from bench.run import RHO, Run, judged
from bench.timing import CPU, percentiles, timed
from gsr_kernels import attach

RANKS, TURNS = 2, 50
# tokens of one rank's batch
TOKENS = 128
# of ZeRO's time over FSDP2's, under the same method
ALLOWED = 1.15
# engine, with GSR
VARIANTS = {f"{engine}{', GSR' * gsr}": (engine, gsr) for gsr in (False, True) for engine in ("FSDP2", "ZeRO 2")}

Step = Callable[[], None]


def rows(run: Run) -> Iterator[dict]:
    """Yield rows of a Llama of one layer. A step's sums are diagonals, which both engines need alike."""
    setting = replace(run.setting, model=model("small", 1), rank=None, precision="fp32", gradient="fp32")
    labels = {**setting.labels, "out_of_span": "keep", "tokens": RANKS * TOKENS, "threads": 1}
    if run.dry:
        kernels = work(setting, ADAMW, ATTACHED)
        of = {name: kernels[ATTACHED if gsr else ADAMW] for name, (_, gsr) in VARIANTS.items()}
        yield from replace(run, setting=setting).compare(labels, of, dict, "FSDP2")
        return
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, (folder, setting.model.config), RANKS)
        times = torch.load(f"{folder}/times")
    for name, (engine, gsr) in VARIANTS.items():
        row = {**labels, "variant": name, "launch": "eager", **percentiles(times[name])}
        if engine != "FSDP2":
            to = name.replace(engine, "FSDP2")
            ratio = row["p50_ms"] / percentiles(times[to])["p50_ms"]
            said = judged(f"{ratio:.2f} x {to}", ratio, ALLOWED) if gsr else ""
            row |= {"ratio": round(ratio, 3), "ratio_to": to, "verdict": said}
        yield row


def step_times(config: Mapping[str, Any], turns: int) -> dict[str, list[float]]:
    """Return the milliseconds of each step of each variant, in turns; every rank of the default group must call."""
    return timed({name: _MAKERS[engine](config, gsr) for name, (engine, gsr) in VARIANTS.items()}, CPU, 0, turns)


def _rank(rank: int, folder: str, config: Mapping[str, Any]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS), "LOCAL_SIZE": str(RANKS)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", RANKS), rank=rank, world_size=RANKS)
    times = step_times(config, TURNS)
    if rank == 0:
        torch.save(times, f"{folder}/times")
    dist.barrier()
    dist.destroy_process_group()


def _begin(config: Mapping[str, Any]) -> tuple[Any, torch.Tensor]:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(**{"use_cache": False, **config}))
    return made, torch.randint(config["vocab_size"], (1, TOKENS))


def _adamw(model: nn.Module) -> Optimizer:
    return torch.optim.AdamW(model.parameters(), 1e-4, fused=True)


def _fsdp2(config: Mapping[str, Any], gsr: bool) -> Step:
    from torch.distributed.fsdp import fully_shard

    model, batch = _begin(config)
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    optimizer = _adamw(model)
    if gsr:
        attach(model, optimizer, rho=RHO, out_of_span="keep")

    def step() -> None:
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _zero_2(config: Mapping[str, Any], gsr: bool) -> Step:
    import deepspeed

    from gsr_kernels.integrations.deepspeed import attach as attach_to_engine

    # both engines by gloo: nothing is compiled to speed up messages inside one machine
    deepspeed.ops.__compatible_ops__ = {}
    model, batch = _begin(config)
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 2},
        "zero_allow_untested_optimizer": True,
    }
    engine = deepspeed.initialize(model=model, optimizer=_adamw(model), config=settings)[0]
    if gsr:
        attach_to_engine(engine, rho=RHO, out_of_span="keep")

    def step() -> None:
        engine.backward(engine(input_ids=batch, labels=batch).loss)
        engine.step()

    return step


_MAKERS = {"FSDP2": _fsdp2, "ZeRO 2": _zero_2}
