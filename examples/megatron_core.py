"""Megatron-Core's GPT with its distributed optimizer, tensor and data parallel; stop, and go on. It needs GPUs.

torchrun --nproc-per-node 4 examples/megatron_core.py --folder runs/megatron --tensor 2 --steps 50
torchrun --nproc-per-node 4 examples/megatron_core.py --folder runs/megatron --tensor 2 --steps 100    # goes on
"""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import Float16Module
from tiny import rows

from gsr_kernels.integrations.megatron import attach


def main(folder: Path, tensor: int, steps: int) -> None:
    checkpoint = folder / f"step-{steps:06}"
    checkpoint.mkdir(parents=True, exist_ok=True)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    parallel_state.initialize_model_parallel(tensor)
    share, shares = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    model_parallel_cuda_manual_seed(0)

    sizes = {"num_layers": 2, "hidden_size": 32, "ffn_hidden_size": 64, "num_attention_heads": 4}
    config = TransformerConfig(**sizes, tensor_model_parallel_size=tensor, bf16=True, params_dtype=torch.bfloat16)
    model = GPTModel(config, get_gpt_layer_local_spec(), 64, 16, position_embedding_type="rope").to("cuda")
    ddp = DistributedDataParallelConfig(use_distributed_optimizer=True, grad_reduce_in_fp32=True)
    model = DistributedDataParallel(config, ddp, Float16Module(config, model))
    # pretrained weights are loaded here, and then optimizer.reload_model_params() called
    optimizer = get_megatron_optimizer(OptimizerConfig(lr=3e-3, bf16=True, use_distributed_optimizer=True), [model])
    # a directory, written at the first start and read at every other: one a task. "keep" sums one number a direction
    handle = attach(optimizer, rho=0.5, out_of_span="keep", bases=folder / "bases")

    def states(is_loading: bool = False) -> dict:
        weights, kind = model.module.sharded_state_dict(), {"distrib_optim_sharding_type": "dp_reshardable"}
        return {"model": weights, "optimizer": optimizer.sharded_state_dict(weights, is_loading, metadata=kind)}

    if written := sorted(folder.glob("step-*/metadata.json")):
        # what was saved of the method comes back with the rest
        saved = dist_checkpointing.load(states(is_loading=True), str(written[-1].parent))
        model.module.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])

    tokens = torch.tensor([row["input_ids"] for row in rows()]).to("cuda")
    places, mask = torch.arange(15).expand(16 // shares, 15).to("cuda"), torch.ones(1, 1, 15, 15).triu(1).to("cuda") > 0
    for step in range(handle.state_dict()["steps"], steps):
        own = tokens[torch.randperm(64, generator=torch.Generator().manual_seed(step))[:16]].chunk(shares)[share]
        model.zero_grad_buffer()
        optimizer.zero_grad()
        loss = model(own[:, :-1], places, mask, labels=own[:, 1:]).float().mean()
        optimizer.scale_loss(loss).backward()
        finalize_model_grads([model])
        optimizer.step()
        if dist.get_rank() == 0:
            print(f"step {step} loss of the first share {loss.item():.6f}", flush=True)
    if not (checkpoint / "metadata.json").exists():
        dist_checkpointing.save(states(), str(checkpoint))
    dist.destroy_process_group()


# Megatron-Core writes a checkpoint in processes that import this file
if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--tensor", type=int, default=1, help="processes that share each layer")
    parser.add_argument("--steps", type=int, default=50)
    main(**vars(parser.parse_args()))
