import json

import pytest
import torch
from torch import nn

from gsr_kernels import SpectralBasis
from gsr_kernels.__main__ import main
from gsr_kernels.cli.estimate import Share, model_kinds, share, training
from gsr_kernels.cli.floors import Kind, cost

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 50,
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


@pytest.mark.parametrize("rank", [None, 3])
def test_the_bases_take_what_is_said(rank):
    weights = [nn.Linear(d2, d1).weight for d1, d2 in ((8, 8), (12, 6), (6, 12))]
    kinds = [Kind(1, *weight.shape) for weight in weights]
    assert cost(kinds, rank, "keep", 4, 4).bases == sum(SpectralBasis.of(w, rank).nbytes for w in weights)


@pytest.mark.parametrize(
    ("rank", "out_of_span", "flop"),
    [(None, "drop", 4 * 12 * 6 * 6), (None, "keep", 4 * 12 * 6 * 6), (3, "keep", 4 * 12 * 6 * 3), (3, "drop", 1080)],
)
def test_the_products_are_counted(rank, out_of_span, flop):
    # Uᵀ G, (·) V, (·) Vh, U (·) for d1 = 12, d2 = 6, k = 3
    assert 2 * (12 * 6 * 3 + 6 * 3 * 3 + 3 * 3 * 6 + 12 * 3 * 6) == 1080
    one = cost([Kind(1, 12, 6)], rank, out_of_span, 4, 4)
    assert one.flop == flop
    assert cost([Kind(5, 12, 6)], rank, out_of_span, 4, 4).flop == 5 * flop
    assert cost([Kind(1, 12, 6, 5)], rank, out_of_span, 4, 4) == cost([Kind(5, 12, 6)], rank, out_of_span, 4, 4)
    assert cost([Kind(1, 12, 6)], rank, out_of_span, 2, 4).moved < one.moved


@pytest.mark.parametrize(
    ("out_of_span", "rank", "cut", "held", "summed"),
    [
        ("keep", None, "rows", 6 * (12 / 2 + 6) + 6 * (6 / 2 + 12) + 8 * (8 / 2 + 8), 6 + 6 + 8),
        ("drop", None, "rows", 6 * (12 / 2 + 6) + 6 * (6 / 2 + 12) + 8 * (8 / 2 + 8), 36 + 6 + 8),
        ("drop", None, "short side", 6 * (12 + 6 / 2) + 6 * (6 / 2 + 12) + 8 * (8 / 2 + 8), 6 + 6 + 8),
        ("drop", 3, "short side", 3 * (12 + 6 / 2) + 3 * (6 / 2 + 12) + 3 * (8 / 2 + 8), 3 * 9),
        # intervals of elements: rows, and the core of what "drop" cuts
        ("keep", None, "ZeRO 3", 6 * (12 / 2 + 6) + 6 * (6 / 2 + 12) + 8 * (8 / 2 + 8), 6 + 6 + 8),
        ("drop", None, "ZeRO 3", 6 * (12 / 2 + 6) + 6 * (6 / 2 + 12) + 8 * (8 / 2 + 8), 36 + 36 + 8),
        ("keep", None, "ZeRO 1, 2", (6 * 18 + 6 * 18 + 8 * 16) / 2, 6 + 6 + 8),
    ],
)
def test_a_rank_of_two_holds_and_sums_what_is_said(out_of_span, rank, cut, held, summed):
    kinds = [Kind(1, 12, 6), Kind(1, 6, 12), Kind(1, 8, 8)]
    ranks = [min(kind.d1, kind.d2, rank or kind.d1) for kind in kinds]
    one = share(kinds, rank, out_of_span, cut, 2, 2)
    assert (one.held, one.summed, one.gathered) == (2 * held + 4 * sum(ranks), summed, 0)
    shared = share(kinds, rank, out_of_span, cut, 2, 2, shard_bases=True)
    halves = sum(k * (kind.d1 + kind.d2) for k, kind in zip(ranks, kinds))
    assert (shared.held, shared.summed) == (halves + 4 * sum(ranks), summed)


@pytest.mark.parametrize(
    ("out_of_span", "rank", "cut", "numbers"),
    # half of Uᵀ G of the wide weight, and of the tall one
    [
        ("drop", None, "rows", 6 * 3),
        ("drop", None, "short side", 2 * 6 * 3),
        ("drop", 3, "rows", 0),
        ("keep", None, "rows", 0),
    ],
)
def test_what_is_kept_for_the_second_products_is_said(out_of_span, rank, cut, numbers):
    kinds = [Kind(1, 12, 6), Kind(1, 6, 12), Kind(1, 8, 8)]
    assert share(kinds, rank, out_of_span, cut, 2, 2).kept == 4 * numbers


def test_columns_that_do_not_come_out_even_are_not_cut():
    shares = [share([Kind(1, 9, 4)], None, "drop", cut, 3, 4) for cut in ("rows", "short side")]
    assert shares == [Share(4 * (4 * (9 / 3 + 4)) + 4 * 4, 4 * 4, 0)] * 2


@pytest.mark.parametrize(
    ("out_of_span", "rank", "cut", "numbers"),
    [
        # the other side's factor, before the sum and after it
        ("keep", None, "rows", 2 * 6 * 6 + 2 * 6 * 12),
        ("keep", None, "short side", 2 * 6 * 12 + 2 * 6 * 12),
        # of what is cut along the long side after it alone
        ("drop", None, "rows", 6 * 6 + 2 * 6 * 12),
        ("drop", 3, "rows", 2 * 3 * 6 + 2 * 3 * 12),
    ],
)
def test_shared_bases_are_gathered_as_is_said(out_of_span, rank, cut, numbers):
    kinds = [Kind(1, 12, 6), Kind(1, 6, 12)]
    assert share(kinds, rank, out_of_span, cut, 2, 2, shard_bases=True).gathered == 2 * numbers


@pytest.mark.parametrize("cut", ["rows", "short side"])
@pytest.mark.parametrize("shard_bases", [False, True])
def test_experts_are_dealt_out_whole(cut, shard_bases):
    # of 5 experts some of 4 ranks have two
    one = 4 * (8 * (12 + 8) + 8)
    assert share([Kind(3, 12, 8, 5)], None, "drop", cut, 4, 4, shard_bases) == Share(3 * 2 * one, 0, 0)


def test_experts_of_a_model_are_told_from_matrices(tmp_path):
    config = {"model_type": "mixtral", "num_local_experts": 4, "intermediate_size": 24, "num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **config, "architectures": ["MixtralForCausalLM"]}))
    kinds, _ = model_kinds(tmp_path)
    assert {kind for kind in kinds if kind.experts > 1} == {Kind(1, 48, 16, 4), Kind(1, 16, 24, 4)}


def test_the_command_says_what_a_rank_holds(folder, capsys):
    assert main(["estimate", str(folder), "--rank", "4", "--shards", "8"]) == 0
    lines = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert lines[0] == "of 8 ranks that share each weight, one:" and len(lines) == 2 + 4 * 2 * 2 + 2


def test_the_command_says_what_a_rank_of_zero_holds(folder, capsys):
    for stage, placement in (("1", "ZeRO 1, 2"), ("3", "ZeRO 3")):
        assert main(["estimate", str(folder), "--rank", "4", "--shards", "8", "--zero", stage]) == 0
        lines = capsys.readouterr().out.split("\n\n")[1].splitlines()
        assert len(lines) == 2 + 4 * 2 + 1 and all(placement in line for line in lines[2:-1])


def test_megatron_has_q_k_and_v_in_one_and_shards_some_by_columns(folder, capsys):
    kinds, _ = model_kinds(folder, megatron=True)
    row, column = {"columns": True}, {"columns": False}
    expected = [Kind(2, 32, 16, **column), Kind(2, 16, 16, **row), Kind(2, 64, 16, **column), Kind(2, 16, 32, **row)]
    assert sorted(kinds) == sorted(expected)
    # 2 of 4 ranks in tensor parallelism: a quarter of the elements, the factor of the other side of half the weights
    one = share([Kind(1, 12, 6), Kind(1, 6, 12, columns=True)], None, "keep", "Megatron", 4, 2, tensor=2)
    assert (one.held, one.summed) == (2 * 2 * 6 * (12 / 4 + 6 / 2) + 2 * 4 * 6, 6 + 6)
    assert main(["estimate", str(folder), "--rank", "4", "--shards", "8", "--megatron", "4"]) == 0
    lines = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert len(lines) == 2 + 4 * 2 + 1 and all("Megatron" in line for line in lines[2:-1])
    assert main(["estimate", str(folder), "--shards", "6", "--megatron", "4"]) == 2
    assert "--megatron needs --shards, a multiple of it" in capsys.readouterr().err


def test_shapes_without_weights(folder):
    kinds, parameters = model_kinds(folder)
    assert sorted(kinds) == [Kind(2, 16, 32), Kind(4, 8, 16), Kind(4, 16, 16), Kind(4, 32, 16)]
    assert sum(parameters) > sum(count * d1 * d2 for count, d1, d2, *_ in kinds) + 2 * 50 * 16
    assert torch.get_default_device().type == "cpu"


@pytest.mark.parametrize("file", ["", "config.json"])
def test_the_command(folder, file, capsys):
    assert main(["estimate", str(folder / file), "--rank", "4", "--tflops", "1", "--bandwidth", "100"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("14 matrices, 4,608 of ")
    assert len(lines) == 3 + 2 * 4 + 2
    # of each the ms, the GB of training, and the verdict
    assert all(line.split()[-3][0].isdigit() and line.endswith(" fits") for line in lines[3:-2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rank", "17"], "rank must lie in [1, 16]"),
        (["--tflops", "1"], "belong together"),
        (["--tflops", "0", "--bandwidth", "1"], "must be positive"),
        (["--shards", "0"], "--shards must be at least 1"),
        (["--zero", "2"], "--zero needs --shards"),
    ],
    ids=str,
)
def test_bad_arguments(folder, capsys, arguments, message):
    assert main(["estimate", str(folder), *arguments]) == 2
    assert message in capsys.readouterr().err


VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "d_model": 16, "d_kv": 4,
             "d_ff": 24, "num_layers": 2, "num_heads": 2, "vocab_size": 50},
            # q, k, v, o of two encoder layers and, twice, of two decoder layers
            {Kind(18, 8, 16), Kind(6, 16, 8), Kind(4, 24, 16), Kind(4, 16, 24)},
        ),
        (
            {"model_type": "vit", "architectures": ["ViTForImageClassification"], **VISION},
            {Kind(8, 16, 16), Kind(2, 24, 16), Kind(2, 16, 24)},
        ),
        (
            # no class named: the plain model of the type
            {"model_type": "llava", "vision_config": {"model_type": "clip_vision_model", **VISION},
             "text_config": {**CONFIG, "intermediate_size": 40}},
            {Kind(12, 16, 16), Kind(4, 8, 16), Kind(2, 24, 16), Kind(2, 16, 24), Kind(4, 40, 16), Kind(2, 16, 40)},
        ),
    ],
    ids=["t5", "vit", "llava"],
)  # fmt: skip
def test_models_of_every_kind(tmp_path, config, expected):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert set(model_kinds(tmp_path)[0]) == expected


def test_a_small_model_has_no_truncated_option_by_default(folder, capsys):
    assert main(["estimate", str(folder)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3 + 2 * 2 + 2


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "no_such_model"}, "model type `no_such_model`"),
        ({"hidden_size": 3}, "Unrecognized model"),
        ({"model_type": "resnet", "depths": [1], "hidden_sizes": [8]}, "matches no trained matrix"),
        ({**CONFIG, "num_attention_heads": 0}, "ZeroDivisionError"),
    ],
    ids=["unknown", "untyped", "convolutions", "broken"],
)
def test_a_model_that_is_not_built_takes_a_sentence(tmp_path, capsys, config, message):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["estimate", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert message in said and "print(attach(" in said and len(said) < 400 and said.count("\n") == 1


def test_without_transformers_there_is_a_way(folder, capsys, monkeypatch):
    monkeypatch.setattr("gsr_kernels.io.saved_model.find_spec", lambda name: None)
    assert main(["estimate", str(folder)]) == 2
    assert "pip install '.[runner]'" in capsys.readouterr().err


def test_no_model(tmp_path, capsys):
    assert main(["estimate", str(tmp_path)]) == 2
    assert "no config.json" in capsys.readouterr().err


def test_small_models_of_any_kind_have_figures(tmp_path, capsys):
    sizes = {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 2, "num_heads": 2, "vocab_size": 50}
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    for kind, config in {"t5": sizes, "vit": vision | {"image_size": 8, "patch_size": 4}}.items():
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, **config}))
        assert main(["estimate", str(tmp_path), "--rank", "4"]) == 0
        table = capsys.readouterr().out.splitlines()[3:-2]
        assert len(table) == 8 and all(float(figure) > 0 for line in table for figure in line.split()[3:-1])


def test_it_says_whether_training_fits(folder, capsys):
    kinds, parameters = model_kinds(folder)
    bases = cost(kinds, None, "drop", 4, 4).bases
    fp32 = training(kinds, parameters, 4, bases)
    assert fp32.peak == 4 * (4 * sum(parameters) + max(parameters)) + bases + fp32.decomposition
    for memory, word in ((fp32.peak * 1.01, "fits"), (fp32.peak * 0.99, "DOES NOT FIT")):
        assert main(["estimate", str(folder), "--memory", str(memory / 1e9)]) == 0
        [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("all     drop     fp32")]
        assert line.endswith(f" {word}")
    assert main(["estimate", str(folder), "--gradient", "bf16"]) == 0
    assert "an optimizer that keeps weights and moments in fp32 too adds" in capsys.readouterr().out
    assert main(["estimate", str(folder), "--memory", "0"]) == 2


def test_quantised_weights_are_refused_as_attach_does(folder, capsys):
    (folder / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": {"load_in_4bit": True}}))
    assert main(["estimate", str(folder)]) == 2
    assert "are quantised (bitsandbytes), and attach() takes none such" in capsys.readouterr().err
