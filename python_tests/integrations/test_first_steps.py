"""What a user is likely to do wrong first, and the help that comes."""

import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from gsr_kernels import Handle, attach

SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32}


def llama(**settings):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE, **settings))


def adamw(model):
    return torch.optim.AdamW(model.parameters(), 1e-3)


def step(model, optimizer):
    tokens = torch.arange(24).reshape(3, 8)
    optimizer.zero_grad()
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()


def test_optimizer_built_before_the_model_was_moved():
    model = llama()
    optimizer = adamw(model)
    # torch moves in place, except where this flag has it make new parameters
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        model.to(torch.float64)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
    with pytest.raises(ValueError, match=r"build it from .* after the model was moved"):
        attach(model, optimizer, rho=0.5)


def test_model_converted_after_attach():
    model = llama()
    optimizer = adamw(model)
    handle = attach(model, optimizer, rho=0.5)
    model.to(torch.bfloat16)
    with pytest.warns(UserWarning, match="have changed between attach"):
        step(model, optimizer)
    assert {weight.steps for weight in handle.weights} == {1}


def test_weights_loaded_after_attach():
    model = llama()
    optimizer = adamw(model)
    handle = attach(model, optimizer, rho=0.5)
    model.load_state_dict({name: value + 1 for name, value in model.state_dict().items()})
    with pytest.warns(UserWarning, match=r"7 weights have changed .* and 4 more\).* or call handle\.refresh"):
        step(model, optimizer)
    handle.refresh()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(model, optimizer)


def test_optimizer_of_another_model():
    with pytest.raises(ValueError, match="none of the model's parameters"):
        attach(llama(), adamw(llama()), rho=0.5)


def test_stepping_another_optimizer_than_the_attached_one():
    model = llama()
    attached = adamw(model)
    handle = attach(model, attached, rho=0.5)
    step(model, adamw(model))
    with pytest.warns(UserWarning, match="training steps another optimizer"):
        handle.doctor()


def test_model_and_optimizer_in_the_wrong_order():
    model = llama()
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer, got LlamaForCausalLM"):
        attach(adamw(model), model, rho=0.5)


def test_model_in_fp16_on_a_cpu():
    model = llama().half()
    optimizer = adamw(model)
    optimizer.param_groups[0]["eps"] = 1e-4
    handle = attach(model, optimizer, rho=0.5)
    step(model, optimizer)
    assert {weight.basis.U.dtype for weight in handle.weights} == {torch.float32}
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_lora_without_a_dense_trained_weight():
    model = get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    with pytest.raises(ValueError, match=r"(?s)frozen: requires_grad_\(True\).*factor of an adapter: train the dense"):
        attach(model, adamw(model), rho=0.5)


def test_frozen_weights():
    model = llama().requires_grad_(False)
    model.model.norm.requires_grad_(True)
    with pytest.raises(ValueError, match=r"frozen: .*\n.* and \d more"):
        attach(model, adamw(model), rho=0.5)


def test_embeddings_only():
    model = nn.Embedding(8, 4)
    with pytest.raises(ValueError, match="embedding: name them in targets"):
        attach(model, adamw(model), rho=0.5)
    assert len(attach(model, adamw(model), rho=0.5, targets="weight").weights) == 1


def test_mixture_of_experts():
    torch.manual_seed(0)
    model = MixtralForCausalLM(
        MixtralConfig(**SHAPE, num_local_experts=3, num_experts_per_tok=2, num_key_value_heads=2)
    )
    optimizer = adamw(model)
    handle = attach(model, optimizer, rho=0.5)
    step(model, optimizer)
    shapes = {name.rpartition(".")[2]: basis.shape for name, basis in handle.bases.items() if "experts" in name}
    assert shapes == {"gate_up_proj": (3, 64, 16), "down_proj": (3, 16, 32)}
    assert handle.coverage > 0.8 and {weight.steps for weight in handle.weights} == {1}


def test_quantised_weights():
    model = llama()
    # bitsandbytes keeps 4-bit weights as packed bytes, 8-bit weights as int8
    for dtype, layer in ((torch.uint8, "q_proj"), (torch.int8, "k_proj")):
        quantised = nn.Parameter(torch.zeros(16, 16).to(dtype), requires_grad=False)
        getattr(model.model.layers[0].self_attn, layer).weight = quantised
    handle = attach(model, adamw(model), rho=0.5)
    assert "quantised (torch.uint8): load the model in a float dtype" in str(handle)
    assert "quantised (torch.int8)" in str(handle)


def test_tied_weights():
    model = llama(tie_word_embeddings=True)
    optimizer = adamw(model)
    handle = attach(model, optimizer, rho=0.5)
    step(model, optimizer)
    lines = str(handle).splitlines()
    assert [line.split("skipped: ")[1] for line in lines if "skipped" in line] == [
        "embedding",
        "tied to model.embed_tokens.weight",
    ]


class DeepSpeedZeroOptimizer:
    """Stands in for DeepSpeed's, which is no torch optimizer."""


def test_deepspeeds_optimizer_is_refused_with_the_way_out():
    model = llama()
    with pytest.raises(TypeError, match=r"flat partitions.*integrations\.deepspeed\.attach\(engine"):
        attach(model, DeepSpeedZeroOptimizer(), rho=0.5)
    assert Handle.of(adamw(model)) is None
