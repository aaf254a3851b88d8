"""What AdamW leaks into the protected subspace: here and in PEFT's OSF, on the same layer and the same data."""

import copy

import pytest
import torch
from peft import OSFConfig, get_peft_model
from torch import nn

from gsr_kernels import SpectralBasis, attach
from gsr_kernels.methods import OSF
from python_tests.oracle import double


def steps(model, optimizer):
    for step in range(200):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(32, 48, generator=generator)
        target = torch.randn(32, model(x).shape[1], generator=generator)
        optimizer.zero_grad()
        (model(x) - target).square().mean().backward()
        optimizer.step()


def leaks(change, U, Vh):
    """The shares of the change's norm in the protected block, and on its two sides."""
    change, U, Vh = double(change, U, Vh)
    parts = {"block": U.mT @ change @ Vh.mT, "rows": U.mT @ change, "columns": change @ Vh.mT}
    return {name: (torch.linalg.norm(part) / torch.linalg.norm(change)).item() for name, part in parts.items()}


@pytest.mark.parametrize("variant", ["remove_block", "complement"])
@pytest.mark.parametrize("out_features", [48, 64, 24])
def test_adamw_does_not_leak(variant, out_features, record_property):
    model = nn.Sequential(nn.Linear(48, out_features))
    start = model[0].weight.detach().clone()
    # half of the directions: the default of both
    basis = SpectralBasis.of(start, rank=min(48, out_features) // 2)
    peer = get_peft_model(copy.deepcopy(model), OSFConfig(target_modules=["0"]))

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    attach(model, optimizer, OSF(variant=variant))
    steps(model, optimizer)
    ours = leaks(model[0].weight.detach() - start, basis.U, basis.Vh)

    steps(peer, torch.optim.AdamW([p for p in peer.parameters() if p.requires_grad], lr=1e-2))
    theirs = leaks(peer.merge_and_unload()[0].weight.detach() - start, basis.U, basis.Vh)

    for name in ours:
        record_property(f"{name}, {variant}", ours[name])
        record_property(f"{name}, PEFT", theirs[name])
        print(f"48 -> {out_features}, {name}: {variant} {ours[name]:.1e}, PEFT {theirs[name]:.1e}")
    held = ours if variant == "complement" else {"block": ours["block"]}
    assert max(held.values()) <= 1e-5
