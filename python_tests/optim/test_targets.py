import pytest
import torch
from torch import nn

from gsr_kernels import SpectralBasis, attach
from gsr_kernels.optim.report import warn_pinned
from gsr_kernels.optim.targets import Names, find_targets
from gsr_kernels.options import resolve_rank

NO_MATRIX = "not linear, by its name and dimensions"


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
        "experts.position": NO_MATRIX,
        "conv.weight": NO_MATRIX,
        "form.weight": NO_MATRIX,
        "up.weight": None,
        "shared.weight": "tied to up.weight",
        "frozen.weight": "frozen",
        "aside.weight": "not in the optimizer",
        "lm_head.weight": "head",
    }


def test_the_projections_of_multihead_attention_are_matrices_of_their_own():
    model = Model()
    found = find_targets(model, "all-linear", set(model.parameters()))
    assert {target.name: target.heads for target in found if target.heads} == {"attention.in_proj_weight": 3}


def test_head_tied_to_the_embedding_is_out():
    model = Model()
    model.get_output_embeddings = lambda: model.up
    assert reasons(model)["up.weight"] == "head"


def test_names_are_those_of_the_plain_model():
    wrapped = nn.Module()
    wrapped.module = Model()
    assert reasons(wrapped).keys() == reasons(Model()).keys()


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("mlp.shared_expert.up_proj.weight", (8, 4), None),
        ("mlp.shared_experts.up_proj.weight", (8, 4), None),
        ("shared_mlp.up_proj.weight", (8, 4), None),
        ("shared_transformer.feed_forward.up_proj.weight", (8, 4), None),
        ("mlp.experts.gate_up_proj", (3, 8, 4), None),
        ("mlp.experts.gate_up_proj_bias", (3, 8), NO_MATRIX),
        ("mlp.gate.weight", (3, 4), "router of experts"),
        ("mlp.shared_expert_gate.weight", (1, 4), "router of experts"),
        ("mlp.router.classifier.weight", (3, 4), "router of experts"),
        ("feed_forward.router.weight", (3, 4), "router of experts"),
        ("mixer.A_log", (8, 4), NO_MATRIX),
        ("mamba.A_log", (2, 8, 4), NO_MATRIX),
        ("rel_attn.q", (8, 2, 4), NO_MATRIX),
        ("conv.parametrizations.weight.original1", (4, 4, 3), NO_MATRIX),
        ("q_proj.weight", (4, 4), "factor of an adapter"),
        ("q_proj.base_layer.weight", (4, 4), None),
        ("q_proj.c3a_kernel.default", (2, 2, 4), "factor of an adapter"),
        ("q_proj.gralora_A.default", (2, 4, 2), "factor of an adapter"),
        ("self_attn.relative_attention_bias.weight", (32, 4), "embedding"),
    ],
)
def test_names_of_one_layer(name, shape, reason):
    beside = ["embed.weight", "layers.0.mlp.experts.down_proj", "layers.0.norm.weight"]
    if name.startswith("q_proj"):
        beside.append("layers.0.q_proj.base_layer.weight")
    assert Names([*beside, f"layers.0.{name}"]).reason(f"layers.0.{name}", torch.Size(shape)) == reason


def test_a_gate_with_no_experts_is_a_layer():
    assert Names(["layers.0.mlp.gate.weight"]).reason("layers.0.mlp.gate.weight", torch.Size((8, 4))) is None


@pytest.mark.parametrize("wrapper", ["", "module.", "model.", "_forward_module.model."])
@pytest.mark.parametrize("head", ["score", "qa_outputs", "v_head.summary", "output", "bert.pooler.dense"])
def test_what_is_not_in_the_pretrained_layers_is_left(wrapper, head):
    names = [
        f"{wrapper}{name}.weight"
        for name in ("bert.encoder.layer.0.output.dense", "bert.embeddings.word_embeddings", head)
    ]
    parameters = {name: nn.Parameter(torch.zeros(4, 4)) for name in names}
    found = find_targets(parameters, "all-linear", set(parameters.values()))
    assert [target.reason is None for target in found] == [True, False, False]


def test_names_without_repeated_layers_are_all_of_a_body():
    names = Names(["fc1.weight", "fc2.weight", "lm_head.weight"])
    assert [names.reason(f"{name}.weight", torch.Size((4, 4))) for name in ("fc1", "fc2", "lm_head")] == [
        None, None, "head"
    ]  # fmt: skip


def test_an_untied_head_inside_a_wrapper():
    model = Model()
    model.up.get_output_embeddings = lambda: model.c_attn
    assert reasons(model)["c_attn.weight"] == "head"


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 8))


class ColumnParallelLinear(Table):
    """As Megatron's: no nn.Linear."""


def test_the_type_of_a_module_leaves_out_what_its_name_would_take():
    model = nn.Sequential(Table(), ColumnParallelLinear(), nn.Linear(4, 4))
    assert reasons(model) == {"0.weight": "Table is not linear", "1.weight": None, "2.weight": None}


def test_weights_that_drop_confines_are_said():
    with pytest.warns(UserWarning, match=r"probe have sides that differ 32 times.*If they are new"):
        warn_pinned({"probe": SpectralBasis.of(torch.ones(2, 64)), "layer": SpectralBasis.of(torch.ones(8, 64))})
    with pytest.warns(UserWarning, match="fresh are zero"):
        warn_pinned({"fresh": SpectralBasis.of(torch.zeros(8, 8))})


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
    asked = resolve_rank(rank, SHAPES)
    # a weight has no more directions than its short side
    assert [k and min(k, *SHAPES[name]) for name, k in asked.items()] == resolved


def test_a_weight_of_less_rank_than_asked_keeps_what_was_asked():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4))
    handle = attach(model, torch.optim.AdamW(model.parameters()), rho=0.5, rank={".*": 2, "[01]": 8})
    assert [(weight.rank, weight.clamped_from) for weight in handle.weights] == [(8, None), (4, 8)]
    assert "rank 4 of 4 (clamped from 8)" in str(handle)


@pytest.mark.parametrize("rank", [0, -1, 17, 1.0, 0.0, 1.5, True, "8", {"k": 5}, {"v": 2}, {"k": 0}, {"(": 2}], ids=str)
def test_rank_out_of_range(rank):
    with pytest.raises(ValueError, match="rank"):
        resolve_rank(rank, SHAPES)


@pytest.mark.parametrize("targets", [["0"], r".*"])
def test_a_convolution_that_is_named_is_refused(targets):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(8, 8))
    for given in (model, dict(model.named_parameters())):
        with pytest.raises(ValueError, match=r"targets names 0.weight \(8, 3, 3, 3\), the kernel of a convolution"):
            find_targets(given, targets, set(model.parameters()))
