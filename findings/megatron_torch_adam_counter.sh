#!/usr/bin/env bash
# megatron-core 0.16.1 with torch's Adam (neither Transformer Engine nor Apex installed): DistributedOptimizer goes on
# from its own state_dict() with a wrong step counter. load_state_dict() puts one and the same tensor into the state of
# every parameter, and each parameter then counts it up: of 3 weights one step makes 2 into 5, and the bias corrections
# with it. Nothing is said. A fresh optimizer's state_dict(), with which the loading of a sharded checkpoint begins, is an
# AssertionError. It asks for CUDA tensors; here the CPU answers for them, by names alone.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 megatron-core==0.16.1
cat > "$work/check.py" <<'PY'
import warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.overrides import TorchFunctionMode

warnings.simplefilter("ignore")
import megatron.core  # noqa: E402
from megatron.core import parallel_state  # noqa: E402
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig  # noqa: E402
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer  # noqa: E402
from megatron.core.transformer import MegatronModule, TransformerConfig  # noqa: E402

torch.cuda.current_device = lambda: torch.device("cpu")


class AsIfCuda(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if str(kwargs.get("device")).startswith("cuda"):
            kwargs["device"] = "cpu"
        found = function(*args, **kwargs)
        return found.replace("torch.", "torch.cuda.") if function is torch.Tensor.type and len(args) == 1 else found


class Model(MegatronModule):
    def __init__(self, config):
        super().__init__(config)
        self.layers = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(3))

    def forward(self, x):
        return sum(layer(x) for layer in self.layers)


def make():
    config = TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=1)
    ddp = DistributedDataParallelConfig(use_distributed_optimizer=True)
    model = DistributedDataParallel(config, ddp, Model(config))
    optimizer = get_megatron_optimizer(OptimizerConfig(lr=0.1, use_distributed_optimizer=True), [model])
    return model, optimizer


def step(model, optimizer):
    model.zero_grad_buffer()
    model(torch.ones(2, 8)).sum().backward()
    model.finish_grad_sync()
    optimizer.step()


def counters(optimizer):
    return [kept["step"].item() for kept in optimizer.optimizer.state.values()]


print("megatron-core", megatron.core.__version__, "torch", torch.__version__)
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
parallel_state.initialize_model_parallel()
with AsIfCuda():
    model, optimizer = make()
    for _ in range(2):
        step(model, optimizer)
    saved = optimizer.state_dict()
    other_model, other = make()
    try:
        other.state_dict()
    except AssertionError:
        print("a fresh optimizer's state_dict() is an AssertionError")
    else:
        raise AssertionError("a fresh optimizer has a state_dict()")
    other.load_state_dict(saved)
    print("counters when loaded", counters(other), "in tensors:", len({id(k["step"]) for k in other.optimizer.state.values()}))
    for one in ((model, optimizer), (other_model, other)):
        step(*one)
    print("one step on, never stopped", counters(optimizer), "and resumed", counters(other))
    assert counters(optimizer) == [3.0] * 3 and counters(other) == [5.0] * 3
print("as described")
PY
cd "$work" && OMP_NUM_THREADS=1 venv/bin/python check.py
