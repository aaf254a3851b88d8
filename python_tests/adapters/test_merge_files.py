"""Saved adapters into saved shards: the same as merging the model, whatever interrupts it."""

import copy
import hashlib
import json

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from gsr_kernels.adapters import merge_files as module
from gsr_kernels.adapters.merge_files import merge_files
from gsr_kernels.adapters.merge_model import merge_and_unload
from python_tests.adapters.peft_models import with_adapters
from python_tests.oracle import error

TASKS = ("first", "second", "third")


@pytest.fixture
def saved(tmp_path):
    """A model in two shards, its adapters in their folders, and what the model itself comes to."""
    model = with_adapters(*TASKS, dtype=torch.float32)
    base = copy.deepcopy(model).unload().state_dict()
    (tmp_path / "model").mkdir()
    for number, part in enumerate((("0.", "2.weight"), ("2.bias", "4."))):
        tensors = {name: tensor.contiguous() for name, tensor in base.items() if name.startswith(part)}
        save_file(tensors, tmp_path / "model" / f"model-{number}.safetensors", {"format": "pt"})
    model.save_pretrained(str(tmp_path / "adapters"), selected_adapters=list(TASKS))
    return tmp_path / "model", [tmp_path / "adapters" / name for name in TASKS], model


def tensors_of(directory):
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def bytes_of(directory):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(directory.iterdir())}


@pytest.mark.parametrize("how", ["magnitude", "ties"])
def test_files_come_to_what_the_model_comes_to(saved, how):
    directory, adapters, model = saved
    assert [file.name for file in merge_files(directory, adapters, how)] == [
        "model-0.safetensors", "model-1.safetensors",
    ]  # fmt: skip
    truth = merge_and_unload(model, how=how).state_dict()
    found = tensors_of(directory)
    assert found.keys() == truth.keys() and all(torch.equal(found[name], truth[name]) for name in truth)


def test_an_interruption_leaves_the_old_file_and_the_same_call_goes_on(saved, monkeypatch):
    directory, adapters, model = saved
    before = bytes_of(directory)

    def broken(tensors, path, metadata):
        save_file(tensors, path, metadata)
        if "model-1" in str(path):
            path.write_bytes(path.read_bytes()[:100])
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "save_file", broken)
    with pytest.raises(KeyboardInterrupt):
        merge_files(directory, adapters)
    half = bytes_of(directory)
    assert half.keys() == before.keys() and half["model-1.safetensors"] == before["model-1.safetensors"]
    monkeypatch.undo()

    with pytest.raises(ValueError, match="another merge was interrupted"):
        merge_files(directory, adapters, "sum")
    assert bytes_of(directory) == half
    assert [file.name for file in merge_files(directory, adapters)] == ["model-1.safetensors"]
    truth = merge_and_unload(model).state_dict()
    assert all(torch.equal(tensor, truth[name]) for name, tensor in tensors_of(directory).items())
    with pytest.raises(ValueError, match="merged into this model already"):
        merge_files(directory, adapters)
    # adapters of later tasks may follow, and then the first ones are still merged
    assert len(merge_files(directory, adapters[:1], "sum")) == 2
    with pytest.raises(ValueError, match="merged into this model already"):
        merge_files(directory, adapters)


def write_base(directory, base, *parts):
    """A model in shards, one for each beginning of names."""
    directory.mkdir()
    for number, part in enumerate(parts):
        tensors = {name: tensor.contiguous() for name, tensor in base.state_dict().items() if name.startswith(part)}
        save_file(tensors, directory / f"model-{number}.safetensors")
    return directory


def write_adapter(directory, base, name="first", **config):
    """A random adapter of a model, in its folder; and the model."""
    config = {"target_modules": ["0", "1"]} | config
    model = with_adapters(name, dtype=torch.float32, base=copy.deepcopy(base), **config)
    model.save_pretrained(str(directory), selected_adapters=[name])
    return directory / name, model


def test_merges_over_different_shards_follow_each_other(tmp_path):
    base = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    directory = write_base(tmp_path / "model", base, "0.", "1.")
    written = []
    for name, modules in (("one", ["0"]), ("both", ["0", "1"]), ("other", ["1"])):
        written.append(merge_files(directory, [write_adapter(tmp_path, base, name, target_modules=modules)[0]]))
    assert [[file.name[6] for file in files] for files in written] == [["0"], ["0", "1"], ["1"]]


@pytest.mark.parametrize(
    ("module", "weight", "kind", "message"),
    [
        (nn.Linear(6, 9), torch.zeros(10, 6), ValueError, r"1.weight \(10, 6\), of another model than .* \(9, 6\)"),
        (nn.Linear(6, 9), torch.zeros(9, 6).to(torch.float8_e4m3fn), TypeError, "1.weight is kept as F8_E4M3"),
        (nn.Conv2d(2, 2, 3), torch.zeros(2, 2, 3, 3), TypeError, "no factor of a linear layer"),
    ],
)
def test_a_weight_of_a_later_shard_that_does_not_fit(tmp_path, module, weight, kind, message):
    base = nn.Sequential(nn.Linear(6, 6), module)
    directory = write_base(tmp_path / "model", base, "0.", "1.")
    save_file({"1.weight": weight}, directory / "model-1.safetensors")
    before = bytes_of(directory)
    with pytest.raises(kind, match=message):
        merge_files(directory, [write_adapter(tmp_path, base)[0]])
    assert bytes_of(directory) == before


def test_factors_that_are_missing_or_differ(tmp_path):
    base = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    directory = write_base(tmp_path / "model", base, "0.", "1.")
    before = bytes_of(directory)
    folders = [
        write_adapter(tmp_path, nn.Sequential(nn.Linear(6, 6), nn.Linear(6, out)), name)[0]
        for name, out in (("first", 6), ("wider", 7))
    ]
    with pytest.raises(ValueError, match=r"different rank or base: at 1\.weight"):
        merge_files(directory, folders)
    factors = load_file(folders[0] / "adapter_model.safetensors")
    for kept, lost in (("lora_A", "lora_B"), ("lora_B", "lora_A")):
        part = {name: tensor for name, tensor in factors.items() if kept in name or ".0." in name}
        save_file(part, folders[0] / "adapter_model.safetensors")
        with pytest.raises(ValueError, match=f"without its {lost}"):
            merge_files(directory, folders[:1])
    assert bytes_of(directory) == before


def test_conv1d_lies(tmp_path):
    base = nn.Sequential(Conv1D(6, 6), Conv1D(9, 6))
    directory = write_base(tmp_path / "conv", base, "0.", "1.")
    folder, model = write_adapter(tmp_path / "conv1d", base, fan_in_fan_out=True)
    merge_files(directory, [folder], "sum")
    truth = merge_and_unload(model, how="sum").state_dict()
    assert all(torch.equal(tensor, truth[name]) for name, tensor in tensors_of(directory).items())
    for last, flag in ((nn.Linear(6, 9), True), (Conv1D(9, 6), False)):
        # a square one beside what the configuration does not say
        base[1] = last
        mixed = write_base(tmp_path / f"mixed-{flag}", base, "0.", "1.")
        before = bytes_of(mixed)
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(config | {"fan_in_fan_out": flag}))
        with pytest.raises(ValueError, match=r"of the square 0\.weight nothing says which it is"):
            merge_files(mixed, [folder])
        assert bytes_of(mixed) == before


def test_settings_that_are_more_than_plain_lora_are_named(tmp_path):
    base = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    directory = write_base(tmp_path / "model", base, "0.", "1.")
    before, (folder, _) = bytes_of(directory), write_adapter(tmp_path, base)
    plain = json.loads((folder / "adapter_config.json").read_text())
    for settings, message in (
        ({"init_lora_weights": "pissa_niter_4"}, "began as pissa_niter_4, which changed the base model"),
        ({"init_lora_weights": "lora_ga"}, "began as lora_ga, which changed the base model"),
        ({"alora_invocation_tokens": [1]}, r"no plain LoRA \(alora_invocation_tokens=\[1\]\)"),
        ({"layer_replication": [[0, 1], [0, 2]]}, "no plain LoRA .layer_replication"),
        ({"modules_to_save": ["1"], "use_dora": True}, "no plain LoRA .*modules_to_save=.*use_dora=True"),
        ({"bias": "all"}, "no plain LoRA .bias='all'"),
        # of a version of PEFT that is not known here
        ({"some_later_setting": 3}, "no plain LoRA .some_later_setting=3"),
        ({"peft_type": "LOHA"}, "no plain LoRA .peft_type='LOHA'"),
    ):
        (folder / "adapter_config.json").write_text(json.dumps(plain | settings))
        with pytest.raises(TypeError, match=message):
            merge_files(directory, [folder])
    assert bytes_of(directory) == before


@pytest.mark.parametrize(
    "settings",
    [{"init_lora_weights": name} for name in ("gaussian", "orthogonal", False, "mica")]
    + [{"exclude_modules": ["1"]}, {"lora_dropout": 0.5, "use_rslora": True, "rank_pattern": {"1": 4}}],
)
def test_supported_settings_come_to_what_peft_comes_to(tmp_path, settings):
    base = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    directory = write_base(tmp_path / "model", base, "0.", "1.")
    folder, model = write_adapter(tmp_path, base, **settings)
    merge_files(directory, [folder], "sum")
    truth = model.merge_and_unload().state_dict()
    assert all(error(tensor, truth[name]) < 1e-6 for name, tensor in tensors_of(directory).items())


TEXT = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
}  # fmt: skip
EYES = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 4,
    "patch_size": 2,
}  # fmt: skip


def saved_adapter(tmp_path, model, targets):
    """A model's directory, an adapter's, and the adapted model."""
    model.save_pretrained(tmp_path / "model")
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=targets))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    adapted.save_pretrained(str(tmp_path / "adapter"))
    return tmp_path / "model", tmp_path / "adapter", adapted


@pytest.mark.parametrize("kind", ["head", "prefix"])
def test_names_that_are_not_those_of_the_files_and_an_untied_head(tmp_path, kind):
    if kind == "head":
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT, tie_word_embeddings=False))
        targets = ["q_proj", "lm_head"]
    else:
        settings = {"text_config": TEXT, "vision_config": EYES, "mm_tokens_per_image": 4}
        model = transformers.Gemma3ForConditionalGeneration(transformers.Gemma3Config(**settings))
        targets = r".*language_model.*\.(q|down)_proj"
    directory, folder, adapted = saved_adapter(tmp_path, model, targets)
    merge_files(directory, [folder], "sum")
    truth = merge_and_unload(adapted, how="sum").state_dict()
    merged = type(model).from_pretrained(directory).state_dict()
    assert merged.keys() == truth.keys() and all(torch.equal(merged[name], truth[name]) for name in truth)


def test_a_tied_head_and_one_that_was_trained_beside_are_refused(tmp_path):
    tied = transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT, tie_word_embeddings=True))
    directory, folder, _ = saved_adapter(tmp_path, tied, ["q_proj", "lm_head"])
    with pytest.raises(ValueError, match=r"holds lm_head.weight tied \(.*\): .* tie_word_embeddings=False"):
        merge_files(directory, [folder])
    free = transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT, tie_word_embeddings=False))
    directory, folder, _ = saved_adapter(tmp_path / "free", free, ["q_proj", "lm_head"])
    factors = load_file(folder / "adapter_model.safetensors")
    next(one for name, one in factors.items() if "base_layer" in name).add_(1)
    save_file(factors, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"holds another lm_head\.weight than"):
        merge_files(directory, [folder])


def test_a_shard_keeps_its_permissions_and_its_link(tmp_path):
    base = nn.Sequential(nn.Linear(6, 6))
    directory = write_base(tmp_path / "model", base, "0.")
    shard, blob = directory / "model-0.safetensors", tmp_path / "blob"
    shard.rename(blob)
    blob.chmod(0o640)
    shard.symlink_to(blob)
    merge_files(directory, [write_adapter(tmp_path, base, target_modules=["0"])[0]])
    assert shard.is_symlink() and blob.stat().st_mode & 0o777 == 0o640


def test_16_bit_factors_are_not_rounded_by_their_scaling(tmp_path):
    base = nn.Sequential(nn.Linear(64, 64))
    directory = write_base(tmp_path / "model", base, "0.")
    folder, _ = write_adapter(tmp_path, base, target_modules=["0"], r=5, alpha=7)
    factors = {name: one.bfloat16() for name, one in load_file(folder / "adapter_model.safetensors").items()}
    save_file(factors, folder / "adapter_model.safetensors")
    merge_files(directory, [folder], "sum")
    A, B = (factors[f"base_model.model.0.lora_{factor}.weight"].double() for factor in "AB")
    truth = base[0].weight.detach().double() + 1.4 * B @ A
    assert error(tensors_of(directory)["0.weight"], truth) < 1e-6


def test_scalings_of_patterns(tmp_path):
    model = with_adapters("first", dtype=torch.float32, alpha_pattern={"4": 10}, rank_pattern={"2": 4}, use_rslora=True)
    (tmp_path / "model").mkdir()
    base = copy.deepcopy(model).unload().state_dict()
    save_file({name: tensor.contiguous() for name, tensor in base.items()}, tmp_path / "model" / "model.safetensors")
    model.save_pretrained(str(tmp_path / "adapters"))
    merge_files(tmp_path / "model", [tmp_path / "adapters" / "first"], "sum")
    truth = merge_and_unload(model, how="sum").state_dict()
    assert all(torch.equal(tensor, truth[name]) for name, tensor in tensors_of(tmp_path / "model").items())


def test_bad_input_changes_nothing(saved, tmp_path):
    directory, adapters, model = saved
    before = bytes_of(directory)

    def refused(message, *arguments, kind=ValueError):
        with pytest.raises(kind, match=message):
            merge_files(*arguments)
        assert bytes_of(directory) == before

    refused("adapters is empty", directory, [])
    refused("how must be", directory, adapters, "median")
    refused("no adapter in", directory, [tmp_path], kind=FileNotFoundError)
    (tmp_path / "empty").mkdir()
    refused("no .*safetensors in", tmp_path / "empty", adapters, kind=FileNotFoundError)

    config = json.loads((adapters[1] / "adapter_config.json").read_text())
    (adapters[1] / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "another"}))
    refused("adapters of different base: .*first of None, .*second of another", directory, adapters)
    (adapters[1] / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    refused("no plain LoRA", directory, adapters, kind=TypeError)
    (adapters[1] / "adapter_config.json").write_text(json.dumps(config))

    for name, other, message in (
        ("wider", {"r": 3}, r"different rank or base: at 0.weight .* is \(6, 2, 6\) of .* and \(6, 3, 6\) of .*wider"),
        ("fewer", {"target_modules": ["0"]}, "differ in their modules: 2.weight"),
    ):
        model.add_adapter(name, LoraConfig(**{"r": 2, "target_modules": ["0", "2", "4"]} | other))
        model.save_pretrained(str(tmp_path / "others"), selected_adapters=[name])
        refused(message, directory, [adapters[0], tmp_path / "others" / name])

    weights = adapters[2] / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:50])
    refused("truncated or damaged", directory, adapters)
    broken = load_file(adapters[1] / "adapter_model.safetensors")
    next(iter(broken.values()))[0, 0] = torch.inf
    save_file(broken, weights)
    refused("holds NaN or Inf", directory, adapters)
    weights.write_bytes(whole)

    (directory / "model-0.safetensors").rename(tmp_path / "away")
    with pytest.raises(ValueError, match=r"lacks 2 of the adapters' weights, so 0\.weight"):
        merge_files(directory, adapters)
    (directory / "model-0.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"model-0\.safetensors is truncated or damaged"):
        merge_files(directory, adapters)


def test_an_adapter_of_an_embedding_is_no_linear_layer_s(tmp_path):
    model = with_adapters("first", base=nn.Sequential(nn.Embedding(4, 4)), target_modules=["0"])
    model.save_pretrained(str(tmp_path))
    with pytest.raises(TypeError, match="no factor of a linear layer"):
        merge_files(tmp_path, [tmp_path / "first"])
