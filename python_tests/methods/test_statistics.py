import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from gsr_kernels import attach
from gsr_kernels.methods import OSF, DataAwareGSR, adaptive_shares, input_scales, layer_importance


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.value = nn.Linear(6, 6), nn.Linear(6, 6)
        self.up, self.down = nn.Linear(6, 24), nn.Linear(24, 6)

    def forward(self, x):
        x = x + self.query(x) + self.value(x)
        return x + self.down(self.up(x).relu())


def make_model():
    return nn.Sequential(Block(), Block(), nn.Linear(6, 3))


def test_importance_is_the_mean_cosine():
    model, batches = make_model(), [torch.randn(4, 5, 6), torch.randn(2, 5, 6)]
    found = layer_importance(model, batches)
    tokens = torch.cat([batch.flatten(0, 1) for batch in batches])
    for name in ("query", "value"):
        layer = getattr(model[0], name)
        assert found[f"0.{name}.weight"] == pytest.approx(
            F.cosine_similarity(tokens, layer(tokens)).mean().item(), abs=1e-6
        )
    block = (found["1.query.weight"] + found["1.value.weight"]) / 2
    assert found["1.up.weight"] == found["1.down.weight"] == pytest.approx(block)
    whole = sum(found[f"{i}.{name}.weight"] for i in (0, 1) for name in ("query", "value")) / 4
    assert found["2.weight"] == pytest.approx(whole)


def test_importance_serves_osf():
    model = make_model()
    with torch.no_grad():
        for block in model[:2]:
            block.query.weight.add_(torch.eye(6))
            block.value.weight.add_(torch.eye(6))
    shares = adaptive_shares(layer_importance(model, [torch.randn(4, 5, 6)]))
    handle = attach(model, torch.optim.AdamW(model.parameters()), OSF(shares))
    assert {weight.name: weight.basis.rank for weight in handle.weights} == {
        name: max(1, round(share * (3 if name == "2.weight" else 6))) for name, share in shares.items()
    }


def test_scales_are_the_size_of_the_inputs():
    model, x = make_model(), torch.randn(7, 5, 6) * torch.tensor([1.0, 2, 3, 4, 5, 0])
    found = input_scales(model, [x[:3], x[3:]], alpha=1)
    size = x.abs().mean((0, 1))
    size[5] = 1e-3 * size.max()
    assert torch.allclose(found["0.query.weight"], size / size.mean())
    assert found["0.down.weight"].shape == (24,)
    attach(model, torch.optim.AdamW(model.parameters()), DataAwareGSR(0.5, found))


def test_batches_of_every_kind_and_no_hook_is_left():
    model = nn.MultiheadAttention(4, 2)
    wrapped = nn.Sequential(nn.Linear(4, 4))
    x = torch.randn(3, 4)
    assert (
        layer_importance(wrapped, [x]) == layer_importance(wrapped, [(x,)]) == layer_importance(wrapped, [{"input": x}])
    )
    assert not wrapped[0]._forward_hooks
    # its output projection is never called as a layer
    with pytest.raises(ValueError, match="no linear layer of equal"):
        layer_importance(model, [(x, x, x)])


def test_refuses_batches_that_tell_nothing():
    model = make_model()
    for function in (layer_importance, input_scales):
        with pytest.raises(ValueError, match="batches is empty"):
            function(model, [])
    with pytest.raises(ValueError, match="no linear layer of equal"):
        layer_importance(nn.Linear(3, 4), [torch.randn(2, 3)])
    with pytest.raises(ValueError, match="no linear layer of the model ran"):
        input_scales(nn.ReLU(), [torch.randn(2, 3)])
    with pytest.raises(ValueError, match="the inputs of weight hold NaN"):
        input_scales(nn.Linear(3, 4), [torch.full((2, 3), torch.nan)])


def test_importance_of_conv1d_and_packed_experts():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.Module()
            self.experts.up = nn.Parameter(torch.randn(2, 6, 6))
            self.project, self.attend = Conv1D(6, 6), nn.MultiheadAttention(6, 2)

        def forward(self, x):
            y = self.project(x)
            return self.attend(y, y, y)[0] @ self.experts.up.sum(0)

    model, x = Experts(), torch.randn(5, 6)
    with torch.no_grad():
        model.project.weight.add_(torch.eye(6))
    found = layer_importance(model, [x])
    cosine = F.cosine_similarity(x, model.project(x)).mean().item()
    assert found == pytest.approx(
        dict.fromkeys(("experts.up", "project.weight", "attend.in_proj_weight", "attend.out_proj.weight"), cosine)
    )
    attach(model, torch.optim.AdamW(model.parameters()), OSF(adaptive_shares(found)), targets=list(found))
    with pytest.raises(ValueError, match=r"no linear layer .* ran on batches: scales are those of nn.Linear, not of"):
        input_scales(model, [x])
    with pytest.raises(ValueError, match=r"input_scale has no entry for it, but for other: .* targets=list\(scales\)"):
        attach(model, torch.optim.AdamW(model.parameters()), DataAwareGSR(0.5, {"other": torch.ones(6)}))
