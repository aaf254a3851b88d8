"""Merging tensors and models: against the dense form, and against PEFT's own merge where both do the same."""

import copy
from typing import get_args

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from gsr_kernels.adapters.merge_model import merge_and_unload
from gsr_kernels.adapters.merging import How, merge
from python_tests.adapters import reference
from python_tests.adapters.factors import draw_tasks
from python_tests.adapters.peft_models import pairs, with_adapters
from python_tests.oracle import assert_as_good, double, error

TASKS = ("first", "second", "third")


@pytest.mark.parametrize("how", get_args(How))
@pytest.mark.parametrize("shape", [(7, 5, 1, 1), (40, 33, 3, 4), (400, 700, 2, 2)], ids=str)
def test_against_the_dense_form(shape, how):
    W, B, A = draw_tasks(*shape)
    truth = W + reference.merged(B, A, how, 0.3)
    assert error(merge(W.clone(), B, A, how, 0.3), truth) < 1e-10
    narrow = [one.float() for one in (W, B, A)]
    same = narrow[0] + reference.merged(*narrow[1:], how, 0.3)
    assert_as_good(merge(narrow[0].clone(), *narrow[1:], how, 0.3), truth, same)


def test_it_is_in_place_and_rounds_once():
    W, B, A = (one.bfloat16() for one in draw_tasks(33, 20, 2, 3))
    truth = W.double() + reference.merged(*double(B, A), "magnitude")
    merged = merge(W, B, A)
    assert merged is W and torch.equal(W, truth.bfloat16())
    lying = torch.randn(20, 33)
    expected = lying.mT + reference.merged(B.float(), A.float(), "sum")
    merge(lying.mT, B, A, "sum")
    assert error(lying.mT, expected) < 1e-6


def test_of_equal_sizes_the_newest_counts():
    B = torch.tensor([[[1.0], [1.0]], [[-1.0], [1.0]]])
    A = torch.ones(2, 1, 3)
    assert torch.equal(merge(torch.zeros(2, 3), B, A), torch.tensor([[-1.0] * 3, [1.0] * 3]))


def test_ties_by_hand():
    # one row a task, rank 1: the largest half of each, then the sign of the sum, then the mean of those that have it
    A = torch.tensor([[[4.0, -3.0, 1.0, 0.5]], [[-1.0, 6.0, 5.0, 0.0]], [[2.0, 0.0, -1.0, 0.1]]])
    merged = merge(torch.zeros(1, 4), torch.ones(3, 1, 1), A, "ties", density=0.5)
    assert torch.equal(merged, torch.tensor([[3.0, 6.0, 5.0, 0.0]]))


@pytest.mark.parametrize("how", get_args(How))
def test_a_model(how):
    model = with_adapters(*TASKS)
    deltas = [[B @ A for B, A in pairs(model, name)] for name in TASKS]
    weights = [module.base_layer.weight.detach().clone() for module in model.modules() if hasattr(module, "lora_A")]
    merged = merge_and_unload(model, how=how)
    linear = [module for module in merged if isinstance(module, nn.Linear)]
    assert len(linear) == 3 and not any(hasattr(module, "lora_A") for module in merged)
    for layer, old, column in zip(linear, weights, zip(*deltas)):
        eye = torch.eye(old.shape[1], dtype=old.dtype).expand(3, -1, -1)
        assert error(layer.weight.detach(), old + reference.merged(torch.stack(column), eye, how, 0.2)) < 1e-10


@pytest.mark.parametrize("base", [nn.Linear(6, 4), Conv1D(4, 6)], ids=["linear", "conv1d"])
def test_the_sum_is_what_peft_merges(base):
    config = {"target_modules": ["0"], "fan_in_fan_out": isinstance(base, Conv1D)}
    model = with_adapters(*TASKS, base=nn.Sequential(base), **config)
    peer = copy.deepcopy(model).merge_and_unload(adapter_names=list(TASKS))
    for found, truth in zip(merge_and_unload(model, how="sum").parameters(), peer.parameters()):
        assert error(found.detach(), truth.detach()) < 1e-10


def test_some_adapters_in_an_order():
    model = with_adapters(*TASKS)
    expected = [reference.merged(torch.stack([pairs(model, name)[2][0] for name in ("third", "first")]),
                torch.stack([pairs(model, name)[2][1] for name in ("third", "first")]), "magnitude")]  # fmt: skip
    old = model.base_model.model[4].base_layer.weight.detach().clone()
    merged = merge_and_unload(model, ["third", "first"])
    assert error(merged[4].weight.detach(), old + expected[0].detach()) < 1e-10


def test_bad_input_changes_nothing():
    W, B, A = draw_tasks(5, 4, 2, 3)
    for change, message in (
        ({"how": "median"}, "how must be one of magnitude, sum, mean, ties"),
        ({"density": 0.0}, r"density must be a finite number in \(0, 1\]"),
        ({"W": W[:-1]}, r"B must be \(3, 4, 2\) to fit"),
        ({"A": A[1:]}, r"A must be \(3, 2, 4\) to fit"),
        ({"backend": "numpy"}, "backend"),
    ):
        with pytest.raises(ValueError, match=message):
            merge(**{"W": W, "B": B, "A": A, **change})
    with pytest.raises(TypeError, match="W must be a real floating-point tensor"):
        merge(W.int(), B, A)
    with pytest.raises(TypeError, match=r"model must be a peft.PeftModel"):
        merge_and_unload(nn.Linear(2, 2))

    model = with_adapters(*TASKS)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="adapters is empty"):
        merge_and_unload(model, [])
    with pytest.raises(ValueError, match="how must be"):
        merge_and_unload(model, how="median")
    with torch.no_grad():
        model.base_model.model[4].lora_B["second"].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"'second' holds NaN or Inf at .*4"):
        merge_and_unload(model)
    model.base_model.model[4].lora_B["second"].weight.data[0, 0] = before["base_model.model.4.lora_B.second.weight"][
        0, 0
    ]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    model.merge_adapter(["first"])
    with pytest.raises(ValueError, match="merged adapters already"):
        merge_and_unload(model)


def test_16_bit_factors_are_not_rounded_by_their_scaling():
    model = with_adapters("first", dtype=torch.float32, r=5, alpha=7)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.bfloat16()
    weight = model.base_model.model[0].base_layer.weight.detach().double()
    B, A = (getattr(model.base_model.model[0], f"lora_{factor}")["first"].weight.detach().double() for factor in "BA")
    assert error(merge_and_unload(model, how="sum")[0].weight.detach(), weight + 1.4 * B @ A) < 1e-6


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.inner, self.head = nn.Embedding(7, 6), nn.Linear(6, 6), nn.Linear(6, 3)


def test_of_modules_that_were_trained_whole_the_last_adapter_s_stay():
    model = with_adapters("first", "second", base=Tagger(), target_modules=["inner"], modules_to_save=["head"])
    for name, parameter in model.named_parameters():
        if "head.modules_to_save" in name:
            parameter.data.fill_(1.0 if "first" in name else 2.0)
    merged = merge_and_unload(copy.deepcopy(model), ["first"])
    assert (merged.head.weight == 1).all() and (merge_and_unload(model).head.weight == 2).all()


def test_trained_tokens_are_not_lost():
    model = with_adapters("first", base=Tagger(), target_modules=["inner"], trainable_token_indices={"words": [1, 2]})
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(TypeError, match="'first' trains tokens"):
        merge_and_unload(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_weight_that_cannot_be_merged_into_leaves_the_others():
    model = with_adapters("first", dtype=torch.float32)
    model.base_model.model[4].base_layer.weight.data = torch.zeros(3, 6).to(torch.float8_e4m3fn)
    before = model.base_model.model[0].base_layer.weight.detach().clone()
    with pytest.raises(TypeError, match=r"the weight of .*4 is kept as torch.float8_e4m3fn"):
        merge_and_unload(model)
    assert torch.equal(model.base_model.model[0].base_layer.weight, before)
