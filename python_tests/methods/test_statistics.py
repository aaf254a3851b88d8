import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralModel,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.pytorch_utils import Conv1D

from gsr_kernels import attach
from gsr_kernels.methods import AdaptiveOSF, DataAwareGSR, input_scales, layer_importance


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


SIZE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
GPT2 = GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=16, bos_token_id=1, eos_token_id=1)
T5 = T5Config(vocab_size=32, d_model=16, d_ff=32, d_kv=8, num_layers=2, num_heads=2, decoder_start_token_id=0)
MIXTRAL = MixtralConfig(vocab_size=32, num_key_value_heads=2, num_local_experts=2, **SIZE)
# a weight of each first block, and whose hidden states it lies between
MODELS = {
    "gpt2": (GPT2LMHeadModel, GPT2, {"transformer.h.0.attn.c_attn.weight": "hidden_states"}),
    "bert": (BertModel, BertConfig(vocab_size=32, **SIZE), {"encoder.layer.0.output.dense.weight": "hidden_states"}),
    "mixtral": (MixtralModel, MIXTRAL, {"layers.0.mlp.experts.down_proj": "hidden_states"}),
    "t5": (
        T5ForConditionalGeneration,
        T5,
        {
            "encoder.block.0.layer.0.SelfAttention.q.weight": "encoder_hidden_states",
            "decoder.block.0.layer.1.EncDecAttention.q.weight": "decoder_hidden_states",
        },
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_importance_is_the_mean_cosine_around_a_block(name):
    kind, config, blocks = MODELS[name]
    model, ids = kind(config).eval(), torch.randint(2, 32, (2, 3, 7))
    batches = [{"input_ids": one} | ({"decoder_input_ids": one[:, :4]} if name == "t5" else {}) for one in ids]
    found = layer_importance(model, batches)
    for weight, states in blocks.items():
        with torch.no_grad():
            both = [model(**batch, output_hidden_states=True)[states] for batch in batches]
        cosine = torch.stack([F.cosine_similarity(one[0], one[1], dim=-1) for one in both]).mean().item()
        assert found[weight] == pytest.approx(cosine, abs=1e-6)
    # blocks share one value each, and what is in none has their mean
    prefixes = {weight.rpartition(".0.")[0] + ".0." for weight in blocks}
    assert all(len({found[w] for w in found if w.startswith(prefix)}) == 1 for prefix in prefixes)
    optimizer = torch.optim.AdamW(model.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        attach(model, optimizer, AdaptiveOSF().for_task(model, batches))


def test_importance_of_any_module_tree_by_a_pattern():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.head = Block(), Block(), nn.Linear(6, 3)

        def forward(self, x):
            return self.head(self.second(self.first(x)))

    model, x = Named(), torch.randn(4, 5, 6)
    with pytest.raises(ValueError, match=r"no numbered module of the model ran .* name its blocks by layers="):
        layer_importance(model, [x])
    found = layer_importance(model, [x[:3], x[3:]], layers="first|second")
    y = model.first(x)
    first, second = (F.cosine_similarity(*pair, dim=-1).mean().item() for pair in ((x, y), (y, model.second(y))))
    assert found["first.up.weight"] == found["first.query.weight"] == pytest.approx(first, abs=1e-6)
    assert found["second.up.weight"] == pytest.approx(second, abs=1e-6)
    assert found["head.weight"] == pytest.approx((first + second) / 2, abs=1e-6)
    for layers, message in (("third", "no module that layers='third' matches"), ("(", "layers: '\\(' is no regular")):
        with pytest.raises(ValueError, match=message):
            layer_importance(model, [x], layers)


def test_scales_are_the_size_of_the_inputs():
    model, x = make_model(), torch.randn(7, 5, 6) * torch.tensor([1.0, 2, 3, 4, 5, 0])
    found = input_scales(model, [x[:3], x[3:]], alpha=1)
    size = x.abs().mean((0, 1))
    size[5] = 1e-3 * size.max()
    assert torch.allclose(found["0.query.weight"], size / size.mean())
    assert found["0.down.weight"].shape == (24,)
    attach(model, torch.optim.AdamW(model.parameters()), DataAwareGSR(0.5, found))


def test_batches_of_every_kind_and_no_hook_is_left():
    wrapped = nn.Sequential(nn.Linear(4, 4))
    x = torch.randn(3, 4)
    assert (
        layer_importance(wrapped, [x]) == layer_importance(wrapped, [(x,)]) == layer_importance(wrapped, [{"input": x}])
    )
    assert not wrapped[0]._forward_hooks


def test_refuses_batches_that_tell_nothing():
    model = make_model()
    for function in (layer_importance, input_scales):
        with pytest.raises(ValueError, match="batches is empty"):
            function(model, [])
    # its width changes
    with pytest.raises(ValueError, match="no numbered module"):
        layer_importance(nn.Sequential(nn.Linear(3, 4)), [torch.randn(2, 3)])
    with pytest.raises(ValueError, match="no linear layer of the model ran"):
        input_scales(nn.ReLU(), [torch.randn(2, 3)])
    with pytest.raises(ValueError, match="the inputs of weight hold NaN"):
        input_scales(nn.Linear(3, 4), [torch.full((2, 3), torch.nan)])


def test_scales_are_those_of_linear_layers_alone():
    model, x = nn.Sequential(Conv1D(6, 6)), torch.randn(5, 6)
    with pytest.raises(ValueError, match=r"no linear layer .* ran on batches: scales are those of nn.Linear, not of"):
        input_scales(model, [x])
    with pytest.raises(ValueError, match=r"input_scale has no entry for it, but for other: .* targets=list\(scales\)"):
        attach(model, torch.optim.AdamW(model.parameters()), DataAwareGSR(0.5, {"other": torch.ones(6)}))
