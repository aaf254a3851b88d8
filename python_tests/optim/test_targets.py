import pytest
import torch
from torch import nn

from gsr_kernels.optim.targets import find_targets
from gsr_kernels.options import resolve_rank


class Conv1D(nn.Module):
    """Stands in for transformers' layer of this name: weight [in, out]."""

    __module__ = "transformers.pytorch_utils"

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 12))


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(3, 8, 4))
        self.position = nn.Parameter(torch.randn(1, 8, 4))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.c_attn = Conv1D()
        self.experts = Experts()
        self.conv = nn.Conv1d(4, 4, 3)
        self.form = nn.Bilinear(4, 4, 3)
        self.up = nn.Linear(4, 8)
        self.shared = nn.Linear(4, 8)
        self.shared.weight = self.up.weight
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.aside = nn.Linear(4, 4)
        self.lm_head = nn.Linear(4, 10)


def reasons(model, targets="all-linear"):
    trained = {p for name, p in model.named_parameters() if not name.startswith(("aside", "module.aside"))}
    return {target.name: target.reason for target in find_targets(model, targets, trained)}


def test_all_linear():
    assert reasons(Model()) == {
        "embed.weight": "embedding",
        "attention.in_proj_weight": None,
        "attention.out_proj.weight": None,
        "c_attn.weight": None,
        "experts.gate_up_proj": None,
        "experts.position": "Experts is not linear",
        "conv.weight": "Conv1d is not linear",
        "form.weight": "Bilinear is not linear",
        "up.weight": None,
        "shared.weight": "tied to up.weight",
        "frozen.weight": "frozen",
        "aside.weight": "not in the optimizer",
        "lm_head.weight": "output head",
    }


def test_the_projections_of_multihead_attention_are_matrices_of_their_own():
    model = Model()
    found = find_targets(model, "all-linear", set(model.parameters()))
    assert {target.name: target.heads for target in found if target.heads} == {"attention.in_proj_weight": 3}


def test_head_tied_to_the_embedding_is_out():
    model = Model()
    model.get_output_embeddings = lambda: model.up
    assert reasons(model)["up.weight"] == "output head"


def test_names_are_those_of_the_plain_model():
    wrapped = nn.Module()
    wrapped.module = Model()
    assert reasons(wrapped).keys() == reasons(Model()).keys()


@pytest.mark.parametrize(
    ("targets", "matched"),
    [
        (r".*\.(out_proj|gate_up_proj)", ["attention.out_proj.weight", "experts.gate_up_proj"]),
        ("up", ["up.weight"]),
        (["out_proj", "up"], ["attention.out_proj.weight", "up.weight"]),
        (["lm_head"], ["lm_head.weight"]),
        (["embed.weight"], ["embed.weight"]),
    ],
    ids=str,
)
def test_patterns(targets, matched):
    assert {name for name, reason in reasons(Model(), targets).items() if reason is None} == set(matched)


@pytest.mark.parametrize("targets", ["(", 3, None, [1]], ids=str)
def test_what_is_no_pattern(targets):
    with pytest.raises(ValueError, match="targets"):
        reasons(Model(), targets)


def test_nothing_matched_lists_what_there_is():
    listed = r"There is:\n  not in targets\n    embed\.weight \(10, 4\), .* and 7 more\n  tied to up"
    with pytest.raises(ValueError, match=rf"targets='q_proj' matches no.*{listed}"):
        reasons(Model(), "q_proj")
    with pytest.raises(ValueError, match="no matrix at all"):
        find_targets(nn.LayerNorm(4), "all-linear", set())


SHAPES = {"layer.0.q.weight": (16, 16), "layer.0.k.weight": (4, 16), "layer.0.up.weight": (64, 16)}


@pytest.mark.parametrize(
    ("rank", "resolved"),
    [
        (None, [None, None, None]),
        (8, [8, 4, 8]),
        (0.5, [8, 2, 8]),
        ({"k": 2, r"up\.weight": 0.25}, [None, 2, 4]),
        ({r"0\.[qk]": 16}, [16, 4, None]),
    ],
    ids=str,
)
def test_rank(rank, resolved):
    assert list(resolve_rank(rank, SHAPES).values()) == resolved


@pytest.mark.parametrize("rank", [0, -1, 17, 1.0, 0.0, 1.5, True, "8", {"k": 5}, {"v": 2}, {"k": 0}, {"(": 2}], ids=str)
def test_rank_out_of_range(rank):
    with pytest.raises(ValueError, match="rank"):
        resolve_rank(rank, SHAPES)
