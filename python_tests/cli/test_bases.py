"""``python -m gsr_kernels bases`` and ``inspect``: a model's shards in, a bases file, a table and plots out."""

import json
import resource
import weakref

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from gsr_kernels import SpectralBasis, attach, save_bases
from gsr_kernels.__main__ import main
from gsr_kernels.basis import fingerprint
from gsr_kernels.cli import bases as command
from gsr_kernels.cli.inspect import measures
from gsr_kernels.io.bases_file import load_bases

SHAPES = {
    "model.layers.0.self_attn.q_proj.weight": (24, 16),
    "model.layers.0.mlp.up_proj.weight": (40, 16),
    "model.layers.0.mlp.experts.down": (3, 16, 12),
}


@pytest.fixture
def model(tmp_path):
    """A directory with two shards, and what else a checkpoint holds."""
    tensors = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    others = {
        "model.embed_tokens.weight": torch.randn(50, 16),
        "lm_head.weight": torch.randn(50, 16),
        "model.norm.weight": torch.randn(16),
        "model.layers.0.mlp.counts": torch.ones(4, 4, dtype=torch.int64),
    }
    directory = tmp_path / "model"
    directory.mkdir()
    first, *rest = tensors
    save_file({first: tensors[first].bfloat16(), **others}, directory / "model-00001-of-00002.safetensors")
    save_file({name: tensors[name] for name in rest}, directory / "model-00002-of-00002.safetensors")
    return directory


def shard(model, place=2):
    return model / f"model-0000{place}-of-00002.safetensors"


def spoil(path):
    path.write_bytes(path.read_bytes()[:-100])


def test_the_bases_of_every_matrix(model, tmp_path, capsys):
    out = tmp_path / "new" / "model.bases"
    assert main(["bases", str(model), "--out", str(out), "--rank", "5"]) == 0
    bases = load_bases(out)
    assert {name: tuple(basis.weight_shape) for name, basis in bases.items()} == SHAPES
    assert all(basis.rank == 5 and basis.U.dtype == torch.float32 for basis in bases.values())
    assert "3 weights, 0 of them" in capsys.readouterr().out


def test_what_fits_is_kept_and_what_changed_is_redone(model, tmp_path, monkeypatch):
    # beside the shards it is not taken for one
    out = model / "bases.safetensors"
    arguments = ["bases", str(model), "--out", str(out)]
    assert main(arguments) == 0
    written = out.read_bytes()
    decomposed = []
    of = command.SpectralBasis.of
    monkeypatch.setattr(command.SpectralBasis, "of", lambda W, *rest: decomposed.append(W.shape) or of(W, *rest))
    assert main(arguments) == 0
    assert not decomposed and out.read_bytes() == written

    changed = {name: torch.randn(SHAPES[name]) for name in list(SHAPES)[1:]}
    save_file(changed, shard(model))
    assert main(arguments) == 0
    assert len(decomposed) == 2
    bases = load_bases(out)
    assert all(bases[name].fingerprint == fingerprint(weight) for name, weight in changed.items())


def test_a_dry_run_writes_nothing(model, tmp_path, capsys):
    out = tmp_path / "model.bases"
    assert main(["bases", str(model), "--out", str(out), "--rank", "4", "--randomized", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "MiB" in printed and " s to decompose 3" in printed and not out.exists()
    assert main(["bases", str(model), "--out", str(out), "--rank", "0.25", "--randomized", "--precision", "bf16"]) == 0
    assert {(basis.rank, basis.precision) for basis in load_bases(out).values()} == {(4, "bf16"), (3, "bf16")}
    # a GPU's default, decomposed on a CPU
    assert main(["bases", str(model), "--out", str(out), "--for", "cuda"]) == 0
    assert {basis.precision for basis in load_bases(out).values()} == {"fp16"}


def refused(capsys, *arguments):
    assert main(list(map(str, arguments))) == 2
    return capsys.readouterr().err


def test_bad_input_is_refused_and_changes_nothing(model, tmp_path, capsys):
    out = tmp_path / "model.bases"
    assert "no *.safetensors" in refused(capsys, "bases", tmp_path / "none", "--out", out)
    assert "[1, 16]" in refused(capsys, "bases", model, "--out", out, "--rank", "17")
    assert "needs --rank" in refused(capsys, "bases", model, "--out", out, "--randomized")
    assert "matches no trained matrix" in refused(capsys, "bases", model, "--out", out, "--targets", "nothing")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({name: torch.full((8, 8), torch.nan)}, shard(model))
    assert f"{name}: weight holds NaN" in refused(capsys, "bases", model, "--out", out)
    assert f"{name} holds NaN" in refused(capsys, "inspect", model)
    spoil(shard(model))
    assert "damaged" in refused(capsys, "bases", model, "--out", out)
    assert list(tmp_path.iterdir()) == [model]


def test_a_file_that_is_not_this_models_is_left_alone(model, tmp_path, capsys):
    out = tmp_path / "model.bases"
    (tmp_path / "other").mkdir()
    save_file({"other.weight": torch.randn(8, 8)}, tmp_path / "other" / "model.safetensors")
    assert main(["bases", str(tmp_path / "other"), "--out", str(out)]) == 0
    written = out.read_bytes()
    assert "bases of another model" in refused(capsys, "bases", model, "--out", out)
    assert out.read_bytes() == written

    newer = written.replace(b'"format_version":"1"', b'"format_version":"9"')
    assert newer != written
    for content, reason in ((newer, "newer"), (written[:-10], "damaged"), (b"", "damaged")):
        out.write_bytes(content)
        assert reason in refused(capsys, "bases", model, "--out", out)
        assert out.read_bytes() == content


def test_weights_of_the_same_names_and_shapes_are_another_model(model, tmp_path, capsys):
    out = tmp_path / "model.bases"
    arguments = ["bases", str(model), "--out", str(out), "--rank", "3"]
    assert main(arguments) == 0
    written = out.read_bytes()
    # as many weights, none of them the same
    tensors = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    shard(model, 1).unlink()
    save_file(tensors, shard(model))
    assert "--replace" in refused(capsys, *arguments) and out.read_bytes() == written
    assert main([*arguments, "--replace"]) == 0
    assert {name: basis.fingerprint for name, basis in load_bases(out).items()} == {
        name: fingerprint(weight) for name, weight in tensors.items()
    }


def test_what_was_not_asked_for_stays(model, tmp_path):
    out = tmp_path / "model.bases"
    asked = "model.layers.0.mlp.up_proj.weight"
    assert main(["bases", str(model), "--out", str(out)]) == 0
    before = load_bases(out)
    before = {name: basis.U.clone() for name, basis in before.items()}
    assert main(["bases", str(model), "--out", str(out), "--targets", asked, "--rank", "2"]) == 0
    after = load_bases(out)
    assert after.keys() == SHAPES.keys() and after[asked].rank == 2
    assert all(torch.equal(after[name].U, before[name]) for name in SHAPES if name != asked)
    # nor is a file refused that holds nothing of what is asked for, but other weights of the model
    alone = tmp_path / "alone.bases"
    for target in SHAPES:
        assert main(["bases", str(model), "--out", str(alone), "--targets", target]) == 0
    assert load_bases(alone).keys() == SHAPES.keys()


def test_bases_of_heads_are_not_replaced(model, tmp_path, capsys):
    out, name = tmp_path / "model.bases", "model.layers.0.mlp.up_proj.weight"
    with safe_open(shard(model), framework="pt") as file:
        save_bases(out, {name: SpectralBasis.of(file.get_tensor(name), heads=4)})
    written = out.read_bytes()
    assert f"heads of {name}" in refused(capsys, "bases", model, "--out", out)
    assert out.read_bytes() == written


def test_a_sketch_does_not_pass_for_an_exact_basis(model, tmp_path):
    out = tmp_path / "model.bases"
    arguments = ["bases", str(model), "--out", str(out), "--rank", "3"]
    asked = ["--targets", ".*up_proj.*"]
    assert main([*arguments, "--randomized"]) == 0
    assert main([*arguments, *asked]) == 0
    assert [basis.randomized for basis in load_bases(out).values()].count(False) == 1
    assert main(arguments) == 0
    assert not any(basis.randomized for basis in load_bases(out).values())


def test_a_tensor_of_two_files(model, tmp_path, capsys):
    out, name = tmp_path / "model.bases", "model.layers.0.mlp.up_proj.weight"
    old = {name: torch.randn(SHAPES[name])}
    save_file(old, model / "old.safetensors")
    for called in (["bases", model, "--out", out], ["inspect", model]):
        assert f"{name} is in {shard(model)} and in old.safetensors" in refused(capsys, *called)
    # an index says which files are the model's
    index = model / "model.safetensors.index.json"
    places = {name: shard(model, 1 if name == next(iter(SHAPES)) else 2).name for name in SHAPES}
    index.write_text(json.dumps({"weight_map": places}))
    assert main(["bases", str(model), "--out", str(out)]) == 0
    assert load_bases(out)[name].fingerprint != fingerprint(old[name])
    index.write_text(json.dumps({"weight_map": places | {"else": "gone.safetensors"}}))
    assert "gone.safetensors, which is not there" in refused(capsys, "inspect", model)
    for damaged in ("{", "[]", '{"weight_map": 3}'):
        index.write_text(damaged)
        assert "is damaged" in refused(capsys, "inspect", model)


def test_arguments_that_make_no_sense_take_one_line(model, tmp_path, capsys):
    out = tmp_path / "model.bases"
    empty = tmp_path / "empty.bases"
    save_bases(empty, {})
    for arguments, said in [
        (("--out", tmp_path), "is a directory"),
        (("--out", out, "--targets", "("), "'(' is no regular expression"),
        (("--out", out, "--targets", ""), "targets='' matches no trained matrix"),
        (("--out", out, "--rank", "-3"), "rank must lie in [1, 16]"),
        (("--out", out, "--rank", "nan"), "in (0, 1), got nan"),
    ]:
        assert said in refused(capsys, "bases", model, *arguments)
    assert "no *.safetensors" in refused(capsys, "inspect", tmp_path / "none")
    assert "holds no bases" in refused(capsys, "inspect", empty)
    assert "empty.bases is no folder" in refused(capsys, "inspect", model, "--plot", empty)
    for arguments, said in [
        (("--rank", "abc"), "rank must be a number of directions"),
        (("--device", "meta"), "'meta' is no device here"),
        (("--out", ""), "argument --out: a path is wanted, got ''"),
        (("--device", "foo"), "'foo' is no device here"),
    ]:
        with pytest.raises(SystemExit, match="2"):
            main(["bases", str(model), "--out", str(out), *arguments])
        assert said in capsys.readouterr().err
    assert not out.exists()


def test_a_full_disk_leaves_the_old_file(model, tmp_path, capsys):
    out = tmp_path / "model.bases"
    assert main(["bases", str(model), "--out", str(out), "--rank", "3"]) == 0
    written = out.read_bytes()

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        assert "File too large" in refused(capsys, "bases", model, "--out", out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert out.read_bytes() == written and {path.name for path in tmp_path.iterdir()} == {"model", "model.bases"}


def test_one_basis_is_held_at_a_time(model, tmp_path, monkeypatch):
    of, held = command.SpectralBasis.of, []

    def counted(*arguments):
        assert not any(basis() for basis in held)
        basis = of(*arguments)
        held.append(weakref.ref(basis))
        return basis

    monkeypatch.setattr(command.SpectralBasis, "of", counted)
    assert main(["bases", str(model), "--out", str(tmp_path / "model.bases")]) == 0
    assert len(held) == 3


LLM = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
}  # fmt: skip
MOE = LLM | {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "decoder_sparse_step": 1}
EYES = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 4,
    "patch_size": 2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("architecture", "settings", "loaded", "name"),
    [
        # experts that are apart in the files
        ("Qwen3MoeForCausalLM", MOE, "Qwen3MoeForCausalLM", "model.layers.0.mlp.experts.gate_up_proj"),
        # another prefix in the files
        (
            "Gemma3ForConditionalGeneration",
            {"text_config": LLM, "vision_config": EYES, "mm_tokens_per_image": 4},
            "Gemma3ForConditionalGeneration",
            "model.language_model.layers.0.mlp.up_proj.weight",
        ),
        # a base model that is given a head, and the other way round
        ("LlamaModel", LLM, "LlamaForCausalLM", "model.layers.0.mlp.up_proj.weight"),
        ("LlamaForCausalLM", LLM, "LlamaModel", "layers.0.mlp.up_proj.weight"),
    ],
)
def test_attach_finds_the_bases_of_a_saved_model(tmp_path, monkeypatch, capsys, architecture, settings, loaded, name):
    transformers = pytest.importorskip("transformers")
    of = getattr(transformers, architecture)
    of(of.config_class(**settings)).save_pretrained(tmp_path)
    assert main(["bases", str(tmp_path), "--out", str(tmp_path / "model.bases")]) == 0
    assert "named as in the files" not in capsys.readouterr().out
    model = getattr(transformers, loaded).from_pretrained(tmp_path)
    # nothing is decomposed anew
    monkeypatch.setattr(SpectralBasis, "of", None)
    handle = attach(model, torch.optim.SGD(model.parameters()), rho=0.5, bases=tmp_path / "model.bases")
    assert name in {weight.name for weight in handle.weights}
    parameters = dict(model.named_parameters())
    assert all(weight.basis.fingerprint == fingerprint(parameters[weight.name]) for weight in handle.weights)


def test_names_as_in_the_files_where_there_is_no_model(model, tmp_path, capsys):
    (model / "config.json").write_text('{"model_type": "unheard-of", "architectures": ["Unheard"]}')
    assert main(["bases", str(model), "--out", str(tmp_path / "model.bases")]) == 0
    assert "Its weights are named as in the files" in capsys.readouterr().out
    assert load_bases(tmp_path / "model.bases").keys() == SHAPES.keys()


def test_what_attach_takes_bases_take_too(tmp_path):
    weights = nn.Sequential(nn.Linear(5, 1), nn.MultiheadAttention(4, 2))
    save_file(dict(weights.state_dict()), tmp_path / "model.safetensors")
    out = tmp_path / "model.bases"
    assert main(["bases", str(tmp_path), "--out", str(out)]) == 0
    handle = attach(weights, torch.optim.SGD(weights.parameters()), rho=0.5)
    found = load_bases(out)
    assert {weight.name: weight.basis.shape for weight in handle.weights} == {
        name: basis.shape for name, basis in found.items()
    }


def test_inspect_shows_a_directory_and_a_bases_file(model, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "model.bases"
    main(["bases", str(model), "--out", str(out)])
    capsys.readouterr()
    assert main(["inspect", str(out)]) == 0
    of_file = capsys.readouterr().out
    assert main(["inspect", str(model), "--plot", str(tmp_path / "plots")]) == 0
    of_directory = capsys.readouterr().out
    assert all(name in of_file and name in of_directory for name in SHAPES)
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"spectra.png", "heatmap.png"}


def test_inspect_of_extreme_weights(model, capsys, monkeypatch):
    zero, wide = "model.layers.1.up_proj.weight", "model.layers.1.down_proj.weight"
    save_file({zero: torch.zeros(8, 8), wide: 1e200 * torch.eye(4, dtype=torch.float64)}, shard(model))
    assert main(["inspect", str(model), "--targets", r"model\.layers\.1.*"]) == 0
    printed = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert printed[zero] == ["8", "0", "0", "inf", "0.0", "0.00%"]
    assert printed[wide] == ["4", "1e+200", "1e+200", "1", "4.0", "25.00%"]
    # before anything is decomposed
    monkeypatch.setattr("gsr_kernels.messages.find_spec", lambda name: None)
    monkeypatch.setattr("gsr_kernels.cli.inspect.stored_matrices", None)
    assert "needs the package matplotlib" in refused(capsys, "inspect", model, "--plot", model)


def test_measures_of_a_spectrum():
    row = measures(torch.tensor([[4.0, 4.0, 4.0, 4.0], [8.0, 4.0, 2.0, 1.0], [2.0, 1.0, 0.0, 0.0]]))
    torch.testing.assert_close(row["effective_rank"][0].item(), 4.0)
    assert row["condition"].tolist() == [1.0, 8.0, torch.inf]
    torch.testing.assert_close(row["share"], torch.tensor([1 / 4, 8 / 15, 2 / 3], dtype=torch.float64))
