"""What a kind of model makes of rows, and what it answers, against the model asked by hand."""

import copy
import logging
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
    SwitchTransformersConfig,
)

from gsr_kernels.continual.examples import Conversation, Example, Source
from gsr_kernels.continual.kinds import IGNORED
from gsr_kernels.continual.models import find_model, load, quiet, save
from gsr_kernels.continual.score import check_room, score
from gsr_kernels.continual.settings import RunSettings
from python_tests.continual.tiny import save_model, tiny_kind, tokenizer

ROWS = [
    Example("red and", " blue", options=(" blue", " green house")),
    Example("the river is a", " green house", options=(" blue", " green house")),
    Example("seven apple pear nine", " blue", options=(" blue", " green house")),
]
EXPERTS = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_local_experts": 4, "router_aux_loss_coef": 0.1,
}  # fmt: skip


@pytest.fixture(scope="module", params=["causal", "seq2seq"])
def writer(request, tmp_path_factory):
    path = save_model(request.param, tmp_path_factory.mktemp("model"))
    kind = tiny_kind(RunSettings(model=path, eval_batch=2, max_tokens=64))
    return kind, load(kind, path, "float32", 0)


def by_hand(kind, model, prompt, text):
    """The log-probability of a text's tokens, one row alone, and their number."""
    tokens = kind.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    before = kind.tokenizer(prompt, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        if kind.name == "seq2seq":
            logits = model(input_ids=before, labels=tokens).logits
        else:
            logits = model(torch.cat([before, tokens], 1)).logits[:, before.shape[1] - 1 : -1]
    return logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).sum().item(), tokens.shape[1]


def test_the_chosen_option_is_the_likeliest_with_its_end(writer):
    kind, model = writer
    for row, answer in zip(ROWS, kind.answers(model, ROWS, "choice", 1)):
        scores = {option: by_hand(kind, model, row.prompt, f"{option}</s>")[0] for option in row.options}
        assert answer == max(scores, key=scores.get)


def test_an_option_that_goes_on_where_another_ends_can_be_chosen(tmp_path):
    kind = tiny_kind(RunSettings(model=save_model("causal", tmp_path)))
    model = load(kind, tmp_path, "float32", 0)
    for answer in (" 10", " 1"):
        row = Example("how many", answer, options=(" 1", " 10"))
        batch = kind.collator()([kind.features(row)])
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(40):
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert kind.answers(model, [row], "choice", 1) == [answer]


def test_prompts_are_whole_when_answers_are_asked_for(tmp_path, monkeypatch):
    kind = tiny_kind(RunSettings(model=save_model("causal", tmp_path), max_tokens=64))
    model = load(kind, tmp_path, "float32", 0)
    rows = (Example("question about the river", "yes"),)
    task = Source("t", "", (*rows, Example("q", "x y z " * 40)), rows, "exact")
    seen, generate = [], model.generate
    monkeypatch.setattr(model, "generate", lambda **asked: seen.append(asked["input_ids"]) or generate(**asked))
    score(kind, model, task, None, tmp_path / "answers.jsonl")
    assert seen[0].tolist() == [kind.tokenizer(rows[0].prompt)["input_ids"]]
    check_room(kind, task, 2000)
    with pytest.raises(ValueError, match=r"t: a prompt and an answer of 2048 tokens need .* the model has 2048"):
        check_room(kind, task, 2048)


def test_writing_is_greedy_whatever_the_checkpoint_says(writer):
    kind, model = writer
    plain = kind.answers(model, ROWS, "text", 8)
    own = copy.deepcopy(model.generation_config)
    leaks = {"repetition_penalty": 5.0, "num_beams": 3, "min_new_tokens": 7, "suppress_tokens": list(range(2, 200))}
    for key, value in leaks.items():
        setattr(model.generation_config, key, value)
    try:
        assert kind.answers(model, ROWS, "text", 8) == plain
    finally:
        model.generation_config = own


def test_a_completion_that_is_cut_is_counted_keeps_its_prompt_and_is_not_taught_to_end(writer):
    kind, _ = writer
    kind.truncated.clear()
    kind.truncated_completions.clear()
    row = Example("red and " * 40, "x y z " * 40)
    features = kind.features(row)
    labels = [label for label in features["labels"] if label != IGNORED]
    prompt = features["input_ids"][: 16 if kind.name == "causal" else 64]
    assert kind.tokenizer.eos_token_id not in labels and len(labels) == (48 if kind.name == "causal" else 64)
    assert kind.tokenizer.decode(labels).startswith("x y z x y") and "red and red" in kind.tokenizer.decode(prompt)
    assert kind.truncated == kind.truncated_completions == {row}
    # what just fits keeps its end
    longest = Example("", "x" * 63)
    assert (
        kind.features(longest)["labels"][-1] == kind.tokenizer.eos_token_id
        and longest not in kind.truncated_completions
    )


def test_the_loss_is_that_of_the_rows_alone(writer):
    kind, model = writer
    rows = [Example(row.prompt, row.completion, goes_on=True) for row in ROWS]
    for row, (loss, count, _) in zip(rows, kind.answers(model, rows, "loss", 1)):
        total, tokens = by_hand(kind, model, row.prompt, row.completion)
        assert count == tokens and loss == pytest.approx(-total / tokens, abs=1e-5)


@pytest.mark.parametrize("can", [True, False])
def test_logits_are_asked_for_from_the_first_completion_on(can, tmp_path, monkeypatch):
    kind = tiny_kind(RunSettings(model=save_model("causal", tmp_path), eval_batch=3))
    model = load(kind, tmp_path, "float32", 0)
    rows = [Example(f"the river is a stone {word}", " blue", goes_on=True) for word in ("red", "green", "seven apple")]
    prompts = [len(kind.tokenizer(row.prompt)["input_ids"]) for row in rows]
    longest = max(len(kind.features(row)["input_ids"]) for row in rows)
    truth = [by_hand(kind, model, row.prompt, row.completion) for row in rows]
    if not can:
        forward = model.forward
        monkeypatch.setattr(model, "forward", lambda input_ids, attention_mask: forward(input_ids, attention_mask))
    seen = []
    hook = model.lm_head.register_forward_hook(lambda head, args, logits: seen.append(logits.shape[1]))
    found = kind.answers(model, rows, "loss", 1)
    hook.remove()
    assert seen == [longest - min(prompts) + 1 if can else longest]
    for (loss, count, _), (total, tokens) in zip(found, truth):
        assert count == tokens and loss == pytest.approx(-total / tokens, abs=1e-5)


def test_the_token_that_every_text_must_begin_with_is_written_first(writer):
    kind, model = writer
    plain = kind.answers(model, ROWS, "text", 4)
    token = kind.tokenizer("7", add_special_tokens=False)["input_ids"][0]
    model.generation_config.forced_bos_token_id = token
    try:
        forced = kind.answers(model, ROWS, "text", 4)
    finally:
        model.generation_config.forced_bos_token_id = None
    # a decoder goes on with its prompt, whose beginning is not its own
    assert forced == plain if kind.name == "causal" else all(text.startswith("7") for text in forced)
    assert not any(text.startswith("7") for text in plain)


def test_batches_do_not_change_what_is_written(writer):
    kind, model = writer
    together = kind.answers(model, ROWS, "text", 6)
    assert together == [kind.answers(model, [row], "text", 6)[0] for row in ROWS]
    assert any(together)


def test_a_decoder_learns_the_completion_and_its_end_alone(tmp_path):
    kind = tiny_kind(RunSettings(model=save_model("causal", tmp_path), max_tokens=8))
    features = kind.features(Example("red", " blue"))
    taught = [label for label in features["labels"] if label != -100]
    assert kind.tokenizer.decode(taught) == " blue</s>"
    assert features["labels"][: -len(taught)] == [-100] * (len(features["input_ids"]) - len(taught))
    # a held-out text has nothing before it: its first token is not foretold
    ((_, count, _),) = kind.answers(load(kind, tmp_path, "float32", 0), [Example("", "xyz", goes_on=True)], "loss", 1)
    assert count == 2

    assert not kind.truncated
    row = Example("a b c d e f g h i j k l", " blue")
    long = kind.features(row)
    assert len(long["input_ids"]) == 8 and kind.truncated == {row}
    # the end of the prompt stays
    assert kind.tokenizer.decode(long["input_ids"]).endswith("l blue</s>")
    assert len(kind.features(Example("", "x y z " * 9))["input_ids"]) == 8


def test_a_chat_template_is_put_around_the_prompt(tmp_path):
    kind = tiny_kind(RunSettings(model=save_model("causal", tmp_path, chats=True), chat=True))
    text = kind.tokenizer.decode(kind.features(Example("red", " blue"))["input_ids"])
    assert text == "<user>red<reply> blue</s>"
    held_out = kind.features(Example("", "the river", goes_on=True))["input_ids"]
    assert kind.tokenizer.decode(held_out) == "the river"


def test_a_classifier_counts_among_the_options_of_the_task(tmp_path):
    path = save_model("classifier", tmp_path)
    kind = tiny_kind(RunSettings(model=path))
    other = Example("nine", "yes", options=("yes", " blue", "maybe"))
    kind.choose_among([("first", ROWS[0].options), ("second", other.options), ("third", ROWS[0].options)])
    model = load(kind, path, "float32", 0)
    kind.set_labels(model, ["first", "second", "third"], 0)
    assert model.config.num_labels == 5 and kind.owner.tolist() == [0, 0, 1, 1, 1]
    # what is saved says which output is which
    save(kind, model, tmp_path / "saved")
    config = AutoConfig.from_pretrained(tmp_path / "saved")
    assert list(config.id2label.values()) == ["first:  blue", " green house", "yes", "second:  blue", "maybe"]
    assert config.label2id == {label: index for index, label in config.id2label.items()}
    groups = {" blue": 0, " green house": 1}, {"yes": 2, " blue": 3, "maybe": 4}
    assert config.task_labels == dict(zip(("first", "second", "third"), (*groups, groups[0])))
    answers = kind.answers(model, [*ROWS, other], "choice", 1)
    assert all(answer in row.options for row, answer in zip([*ROWS, other], answers))

    batch = kind.collator()([kind.features(row) for row in (ROWS[1], other)])
    labels = batch.pop("labels")
    assert labels.tolist() == [1, 2]
    with torch.no_grad():
        outputs = model(**batch)
    two, three = outputs.logits[0, :2], outputs.logits[1, 2:]
    wanted = -(two.log_softmax(0)[1] + three.log_softmax(0)[0]).item()
    assert kind.loss(model)(outputs, labels, 2).item() == pytest.approx(wanted / 2, rel=1e-5)
    assert kind.loss(model)(outputs, labels).item() == pytest.approx(wanted / 2, rel=1e-5)
    assert math.isfinite(wanted)


def test_a_new_head_is_that_of_its_seed_and_task(tmp_path):
    path = save_model("classifier", tmp_path)
    kind = tiny_kind(RunSettings(model=path))
    kind.choose_among([("task", ("a", "b")), ("other", ("c", "d", "e"))])
    model = load(kind, path, "float32", 0)
    kind.set_labels(model, ["task"], 0)
    learned = model.classifier.weight
    assert learned.std().item() == pytest.approx(model.config.initializer_range, rel=0.3)
    with kind.labelled(model, ["task", "other"], 0):
        both = model.classifier.weight
        assert torch.equal(both[:2], learned) and not torch.equal(both[:2], both[2:4])
    assert model.classifier.weight is learned
    # those of a task are the same whenever it comes, and of each seed others
    kind.set_labels(model, ["task", "other"], 0)
    assert torch.equal(model.classifier.weight, both) and model.config.num_labels == 5
    again = load(kind, path, "float32", 0)
    heads = [kind.head(again, ["task", "other"], seed).weight for seed in (0, 1)]
    assert torch.equal(heads[0], both) and not torch.equal(heads[1][:2], both[:2])


def test_a_head_that_comes_with_the_model_gives_way(tmp_path):
    kind = tiny_kind(RunSettings(model=save_model("classifier", tmp_path)))
    AutoModelForSequenceClassification.from_pretrained(tmp_path).save_pretrained(tmp_path)
    kind.choose_among([("task", ("a", "b"))])
    with pytest.warns(UserWarning, match=r"its classifier\.weight gives way to a head for the tasks"):
        load(kind, tmp_path, "float32", 0)


def test_what_a_checkpoint_lacks_is_told_or_refused(tmp_path, capsys):
    path = Path(save_model("causal", tmp_path))
    kind = tiny_kind(RunSettings(model=str(path)))
    weights = load_file(path / "model.safetensors")
    weights["strange"] = weights.pop("model.norm.weight")
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    with pytest.warns(UserWarning) as told, quiet():
        for _ in range(2):
            load(kind, path, "float32", 0)
        # transformers tells the same in a table
        logging.getLogger("transformers.trainer").warning("what nobody foresaw")
    lacks, holds = (str(one.message) for one in told)
    assert lacks.endswith("lacks model.norm.weight") and holds.endswith("holds, and the model does not: strange")
    err = capsys.readouterr().err
    assert "what nobody foresaw" in err and "LOAD REPORT" not in err
    config = (path / "config.json").read_text()
    (path / "config.json").write_text(config.replace('"intermediate_size": 64', '"intermediate_size": 48'))
    with pytest.raises(ValueError, match=r"in other shapes than the model: model\.layers\.0\.mlp\.down_proj\.weight"):
        load(kind, path, "float32", 0)
    (path / "config.json").write_text(config)
    with pytest.raises(ValueError, match=r"lacks model\.norm\.weight: it is not what the run saved"):
        load(kind, path, "float32", 0, whole=True)


def test_a_folder_without_a_tokenizer_says_what_it_lacks(tmp_path):
    path = Path(save_model("causal", tmp_path))
    for file in path.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ValueError, match=r"cannot be read: .* holds the tokenizer of its weights \(tokenizer\.json\)$"):
        find_model(str(path))


def test_a_head_of_other_tasks_is_no_model_of_the_run(tmp_path):
    kind = tiny_kind(RunSettings(model=save_model("classifier", tmp_path / "start")))
    kind.choose_among([("task", ("a", "b"))])
    model = load(kind, tmp_path / "start", "float32", 0)
    kind.set_labels(model, ["task"], 0)
    save(kind, model, tmp_path / "saved")
    # a task that is added later is none of another run
    kind.choose_among([("other", ("c", "d"))])
    assert load(kind, tmp_path / "saved", "float32", 0, whole=True).config.num_labels == 2
    kind.task_labels["task"] = {"b": 0, "a": 1}
    with pytest.raises(ValueError, match=r"saved holds the labels .* or for other tasks"):
        load(kind, tmp_path / "saved", "float32", 0, whole=True)


def test_an_encoder_decoder_learns_from_tokens_however_they_are_batched(tmp_path):
    kind = tiny_kind(RunSettings(model=save_model("seq2seq", tmp_path)))
    model = load(kind, tmp_path, "float32", 0)
    features, collate, loss = [kind.features(row) for row in ROWS], kind.collator(model), kind.loss(model)
    whole = collate(features)
    tokens = (whole["labels"] != IGNORED).sum()
    parts = [collate(features[:1]), collate(features[1:])]
    labels = [part.pop("labels") for part in parts]
    summed = sum(loss(model(**part), label, tokens) for part, label in zip(parts, labels))
    torch.testing.assert_close(summed, model(**whole).loss)


@pytest.mark.parametrize("experts", [False, True])
def test_a_decoder_learns_from_tokens_however_they_are_batched(experts, tmp_path):
    kind = tiny_kind(RunSettings(model=save_model("causal", tmp_path)))
    model = load(kind, tmp_path, "float32", 0)
    if experts:
        torch.manual_seed(0)
        model = MixtralForCausalLM(MixtralConfig(**EXPERTS, output_router_logits=True)).eval()
    # the first row has no prompt
    rows = [Example("", " blue house"), *ROWS]
    features, collate, loss = [kind.features(row) for row in rows], kind.collator(model), kind.loss(model)
    filling = {**features[0], "labels": [IGNORED] * len(features[0]["labels"])}
    whole = collate(features)
    counts = (whole["labels"] != IGNORED).sum(1)
    assert counts[0] == len(features[0]["labels"]) - 1

    def of(batch, items=None):
        batch = dict(batch)
        return loss(model(**{**batch, "labels": None}), batch["labels"], items)

    # on all rows at once it is the model's own
    torch.testing.assert_close(of(whole), model(**whole).loss)
    parts = [collate(part) for part in (features[:1], features[1:], [filling])]
    alone = [of(part, counts.sum()) for part in parts]
    assert alone[2] == 0
    shares = [counts[0] / counts.sum(), counts[1:].sum() / counts.sum()]
    wanted = sum(share * model(**part).loss for share, part in zip(shares, parts))
    torch.testing.assert_close(sum(alone), wanted)


def test_losses_of_an_encoder_decoders_routers_are_refused(tmp_path):
    config = SwitchTransformersConfig(vocab_size=300, output_router_logits=True)
    config.save_pretrained(tmp_path)
    tokenizer(True).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="routers are not trained on: set output_router_logits to false"):
        tiny_kind(RunSettings(model=str(tmp_path)))


MARKED = (
    "{% for m in messages %}<|from|>{{ m.role }} {% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>"
    "{% endgeneration %}{% else %}{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|from|>assistant {% endif %}"
)
TURNS = (("system", "house"), ("user", "red"), ("assistant", "apple pear"), ("user", "green"))
CHATTED = Conversation("green", "blue", turns=TURNS)


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    """A model that writes, by a template with an end of a turn, with marks around answers and without."""
    folder = tmp_path_factory.mktemp("chats")
    kind = tiny_kind(RunSettings(model=save_model("causal", folder)))
    kind.tokenizer.add_special_tokens({"additional_special_tokens": ["<|from|>", "<|end|>"]})
    kind.tokenizer.chat_template = MARKED
    bare = copy.copy(kind)
    bare.tokenizer = copy.deepcopy(kind.tokenizer)
    bare.tokenizer.chat_template = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    return kind, bare, folder


def test_a_conversation_teaches_every_answer_and_no_other_turn(chats):
    for kind in chats[:2]:
        features = kind.features(CHATTED)
        text = "<|from|>system house<|end|><|from|>user red<|end|><|from|>assistant apple pear<|end|>"
        text += "<|from|>user green<|end|><|from|>assistant blue<|end|>"
        assert features["input_ids"] == kind.tokenizer(text)["input_ids"]
        taught = [label for label in features["labels"] if label != IGNORED]
        assert kind.tokenizer.decode(taught) == "apple pear<|end|>blue<|end|>"
        # what is asked is how the whole conversation begins, up to the last answer
        asked = kind.prompt_tokens(CHATTED, 999)
        assert features["input_ids"][: len(asked)] == asked and text.startswith(kind.tokenizer.decode(asked))
        short = copy.copy(kind)
        short.max_tokens = 8
        assert kind.tokenizer.decode(short.features(CHATTED)["input_ids"]) == "istant blue<|end|>"


def test_an_answer_ends_with_its_turn(chats):
    _, kind, folder = chats
    model = load(kind, folder, "float32", 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch = kind.collator()([kind.features(CHATTED)])
    for _ in range(40):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert kind.answers(model, [CHATTED], "text", 20) == ["blue"]


def test_chat_that_a_template_cannot_tell_apart_is_refused(chats, tmp_path):
    kind = copy.copy(chats[1])
    kind.tokenizer = copy.deepcopy(kind.tokenizer)
    last = "{% if loop.last %}<|from|>{% endif %}{{ m.content }}"
    kind.tokenizer.chat_template = kind.tokenizer.chat_template.replace("{{ m.content }}", last)
    with pytest.raises(ValueError, match="writes turn 3 of 5 otherwise when others follow it: give it a template with"):
        kind.features(CHATTED)
    kind.tokenizer.chat_template = "{{ raise_exception('no system') }}"
    with pytest.raises(ValueError, match="refuses turns of system, user, assistant, user, assistant: no system"):
        kind.features(CHATTED)
    kind.tokenizer.chat_template = None
    with pytest.raises(ValueError, match="turns of chat want a tokenizer with a chat template"):
        kind.features(CHATTED)
    with pytest.raises(ValueError, match="turns of chat are for decoders"):
        tiny_kind(RunSettings(model=save_model("seq2seq", tmp_path))).features(CHATTED)
