"""Recipes become flags; those that are shipped run, from JSON lines to the table, on models of their architecture."""

import argparse
import json
from itertools import pairwise

import pytest
import torch
from datasets import Dataset
from transformers import BertConfig, BertForSequenceClassification

from gsr_kernels.__main__ import main
from gsr_kernels.cli.continual import add_arguments
from gsr_kernels.continual.readers import ORDERS
from gsr_kernels.continual.recipe import SHIPPED, expand
from gsr_kernels.optim.targets import find_targets
from python_tests.continual.tiny import WORDS, save_model

RECIPES = sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def recipe(tmp_path, text):
    (tmp_path / "own.yaml").write_text(text)
    return str(tmp_path / "own.yaml")


def test_a_recipe_stands_before_what_is_given_by_hand(tmp_path):
    values = "lr: 3e-5\nmicro_batch: 4\nbf16: true\nchat: false\nmethod: [psp, sr]\nmetric: {a: exact, b: bleu}"
    name = recipe(tmp_path, values)
    flags = [
        "--lr",
        "3e-5",
        "--micro-batch",
        "4",
        "--bf16",
        "--method",
        "psp",
        "--method",
        "sr",
        "--metric",
        "a=exact",
        "--metric",
        "b=bleu",
    ]
    model = ["--model", "m"]
    assert expand(["--recipe", name, *model]) == [*flags, "--recipe", name, *model]
    assert expand([f"--recipe={name}", *model]) == [*flags, f"--recipe={name}", *model]
    by_hand = expand(["--recipe", name, "--method=gsr", "--lr", "1", *model])
    assert by_hand[:2] == ["--micro-batch", "4"] and "psp" not in by_hand
    assert expand(["--lr", "1", *model]) == ["--lr", "1", *model]
    # without a model it is the demo, whose own flags come first
    demo = expand(["--recipe", name])
    assert demo[-len(flags) - 2 :] == [*flags, "--recipe", name] and demo[:2] == ["--seeds", "3"]
    assert "5e-4" not in demo and "seqft" not in demo and "all-linear" in demo


def test_a_setting_of_a_method_goes_with_its_method_and_yields_to_its_own_flag(tmp_path):
    name = recipe(tmp_path, "set: {seqft.lr: 1e-4, lwf-own.lr: 2e-3, lwf-own.lam: 1}")

    def sets(*by_hand):
        flags = expand(["--recipe", name, "--model", "m", *by_hand])
        return [value for flag, value in pairwise(flags) if flag == "--set"]

    assert sets() == ["seqft.lr=1e-4", "lwf-own.lr=2e-3", "lwf-own.lam=1"]
    assert sets("--lr", "1") == ["lwf-own.lam=1"]
    assert sets("--method", "psp,seqft+gsr") == ["seqft.lr=1e-4"] and sets("--method=psp") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: [", "no YAML"),
        ("[1]", "must map the names of flags"),
        ("lr: {a: [1]}", "lr must be a text, a number, or several"),
        ("recipe: other", "names no other recipe"),
    ],
)
def test_what_is_no_recipe_is_said(text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        expand(["--recipe", recipe(tmp_path, text)])


def test_an_unknown_recipe_lists_those_there_are():
    with pytest.raises(FileNotFoundError, match="--recipe absent is no file, nor one of demo, encoder, gsr-paper"):
        expand(["--recipe", "absent"])
    for empty in (["--recipe", "", "--out", "demo"], ["--recipe=", "demo"]):
        with pytest.raises(FileNotFoundError, match="--recipe  is no file"):
            expand(empty)


def test_an_unknown_flag_in_a_recipe_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["continual", "--recipe", recipe(tmp_path, "magic: 1"), "--out", str(tmp_path / "out")])
    assert "unrecognized arguments: --magic" in capsys.readouterr().err


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_says_what_flags_say(name):
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_arguments(parser)
    args = parser.parse_args([*expand(["--recipe", name]), "--out", "out"])
    assert (args.model or name == "demo") and args.method


def test_the_encoder_recipe_acts_on_all_but_the_new_head():
    with torch.device("meta"):
        # all-MiniLM-L6-v2's
        size = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
        model = BertForSequenceClassification(BertConfig(**size))
    found = find_targets(model, "all-linear", set(model.parameters()))
    assert sum(target.reason is None for target in found) == 36
    assert [target.name for target in found if target.reason == "head"] == [
        "bert.pooler.dense.weight",
        "classifier.weight",
    ]


def lines(rows):
    return "\n".join(map(json.dumps, rows))


def write_published(folder):
    """A few rows of files for each of the paper's tasks, in the layouts that they are published in."""
    sums = {"query": [f"{i} + {i}?" for i in range(14)], "response": ["The answer is: 2"] * 14}
    exam = [f'头痛 {i} 天,"A 休息\nB 手术",{answer},' for i, answer in enumerate(["A", "B"] * 6 + ["AB", ""])]
    adds = [
        {"text": f"Add {i}.", "code": f"def f(x): return x + {i}", "test_list": [f"assert f(1) == {i + 1}"]}
        for i in range(12)
    ]
    human = {"prompt": "def f(x):\n", "test": "def check(f):\n    assert f(1)", "entry_point": "f"}
    reaction = {"instruction": "Predict the product.", "output": "[O]"}
    splits = [{"task": "forward reaction prediction", "split": split} for split in ["train"] * 12 + ["test"] * 4]
    quiz = {"subject": "words", "choices": [*"pqrs"], "answer": 0}
    files = {
        "math/main/test.jsonl": lines(
            {"question": f"{i} + {i} = ?", "answer": f"#### {2 * i}", "metadata": {"task": "sums"}} for i in range(4)
        ),
        "math/MATH/test/algebra/1.json": json.dumps(
            {"problem": "1 + 1", "level": "Level 1", "type": "Algebra", "solution": "It is $\\boxed{2}$."}
        ),
        "medicine/train.csv": "\n".join(["Question,Options,Answer,Explanation", *exam]),
        "code/mbpp.jsonl": lines([*adds, adds[0], adds[0] | {"code": "sorted " * 2000}]),
        "code/HumanEval.jsonl": lines(human | {"canonical_solution": f"    return x + {i}"} for i in range(2)),
        "reactions/forward_reaction_prediction.json": json.dumps(
            [
                reaction | {"input": "[C]" * (i + 1), "metadata": split if i % 2 else str(split)}
                for i, split in enumerate(splits)
            ]
        ),
        "cuneiform/train.csv": "\n".join(
            ["oare_id,transliteration,translation", *(f"{i},a-na {i},to {i}" for i in range(12)), "13,um-ma,"]
        ),
        "mmlu.jsonl": lines(quiz | {"question": f"{word}?"} for word in WORDS),
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    Dataset.from_dict(sums).to_parquet(folder / "math" / "MetaMathQA.parquet")


@pytest.mark.usefixtures("blank_pictures")
def test_the_papers_recipe_from_published_files_to_the_table(tmp_path, capsys):
    model, raw, tasks = save_model("causal", tmp_path / "model", chats=True), tmp_path / "raw", tmp_path / "tasks"
    write_published(raw)
    flags = ["continual", "prepare", str(raw), "--model", model, "--tokens"]
    assert main([*flags, "300", "--out", str(tasks)]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [(row[0], int(row[1]), *row[3:]) for row in table[1:6]] == [
        ("math", 9, "0", "5"),
        ("medicine", 7, "0", "drawn"),
        ("code", 4, "0", "2"),
        ("reactions", 6, "0", "4"),
        ("cuneiform", 12, "0", "drawn"),
    ]
    left = {row[0]: " ".join(row[3:]) for row in table[6:11]}
    assert left == {
        "math:": "5 beyond 300 tokens",
        "medicine:": "5 beyond 300 tokens; 2 'Answer' names no single option",
        "code:": "8 beyond 300 tokens; 1 given twice; 1 longer than 1,024 tokens",
        "reactions:": "6 beyond 300 tokens",
        "cuneiform:": "1 'translation' is empty",
    }
    [first, *_] = map(json.loads, (tasks / "medicine.jsonl").read_text().splitlines())
    assert first == {"prompt": "头痛 6 天\nA. 休息\nB. 手术\n", "completion": "A", "options": ["A", "B"]}
    assert main([*flags, "300", "--out", str(tasks)]) == 2 and main([*flags, "0", "--out", str(tmp_path / "new")]) == 2

    out = tmp_path / "out"
    flags = ["--recipe", "gsr-paper", "--model", model, "--data", str(tasks), "--retain", str(raw / "mmlu.jsonl")]
    assert main(["continual", *flags, "--new-tokens", "4", "--out", str(out)]) == 0
    table = (out / "table.txt").read_text()
    header = next(line for line in table.splitlines() if " after " in line)
    assert header.split() == ["after", "mmlu", "math", "medicine", "code", "reactions", "cuneiform", "F.Ra", "AP"]
    told = " ".join(table.split())
    for task, score in {
        "mmlu": "likeliest option",
        "math": "final answers",
        "code": "pass",
        "reactions": "BLEU",
    }.items():
        assert score in told.partition(f" {task} rows of")[2].partition("%")[0]
    for title in ("SeqFT", "PSP", "SR", "GSR", "PerFT", "MTL"):
        assert sum(line.startswith(title) for line in table.splitlines()) >= 1 + (title != "MTL") * 4
    config = json.loads((out / "config.json").read_text())
    assert config["settings"]["batch"] == 512 and config["settings"]["lr"] == 3e-5
    assert config["methods"]["SR"]["lam"] == 1e-9 and config["settings"]["chat"]


def test_published_files_that_make_no_task_are_told(tmp_path, capsys):
    raw, out = tmp_path / "raw", tmp_path / "tasks"
    write_published(raw)
    flags = ["continual", "prepare", str(raw), "--out", str(out)]
    flags += ["--model", save_model("causal", tmp_path / "model", chats=True)]
    (raw / "cuneiform" / "train.csv").write_text("id,body\n1,a\n2,b")
    assert main(flags) == 2
    assert "no row is left for train: no format has the keys 'id', 'body': 2" in capsys.readouterr().err
    (raw / "cuneiform" / "train.csv").unlink()
    assert main(flags) == 2 and "cuneiform holds no file of rows (.jsonl" in capsys.readouterr().err
    (raw / "cuneiform").rmdir()
    assert main(flags) == 2 and "lacks cuneiform of --recipe gsr-paper" in capsys.readouterr().err
    assert not out.exists()


def write_benchmark(folder, category, task, rows, test, labels=("Good", "Bad")):
    """CL_Benchmark's files of a task."""
    (folder / category / task).mkdir(parents=True)
    for file, content in (("train", rows), ("test", test), ("labels", labels)):
        (folder / category / task / f"{file}.json").write_text(json.dumps(content))


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.parametrize("order", ["long1", "long2", "long3"])
def test_the_long_orders_run_and_leave_out_rows_without_a_gold_label(order, tmp_path):
    of = {"MNLI": "NLI", "CB": "NLI", "RTE": "NLI", "IMDB": "SC", "yelp": "SC", "amazon": "SC", "SST-2": "SC"}
    of |= dict.fromkeys(("dbpedia", "agnews", "yahoo"), "TC")
    for task in ORDERS[order]:
        rows = [{"label": ("Good", "Bad")[i % 2], "sentence": f"{WORDS[i]} {task}"} for i in range(6)]
        unlabelled = [{"label": "-", "sentence": "nobody agreed"}] * (2 if task == "MNLI" else 0)
        write_benchmark(tmp_path / "data", of.get(task, task), task, rows[:4], rows[4:] + unlabelled)
    flags = ["--model", save_model("causal", tmp_path / "model"), "--data", str(tmp_path / "data"), "--order", order]
    flags += ["--method", "seqft", "--steps", "1", "--batch", "4", "--out", str(tmp_path / "out")]
    assert main(["continual", *flags]) == 0
    told = " ".join((tmp_path / "out" / "table.txt").read_text().split())
    assert f"after {' '.join(ORDERS[order])} F.Ra" in told and "for want of a gold label: 2 rows" in told
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tasks"]["MNLI"]["rows"]["test"] == 2


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.parametrize(
    ("name", "kind", "more"),
    [("ps-lora-t5", "seq2seq", []), ("ps-lora-llama", "causal", []), ("osf-t5", "seq2seq", ["--order", "order1"])],
)
def test_recipes_on_a_partial_copy(name, kind, more, tmp_path):
    rows = [{"label": ("Good", "Bad")[i % 2], "sentence": f"{WORDS[i % 10]} {i}"} for i in range(16)]
    for category, task in (("TC", "dbpedia"), ("SC", "amazon"), ("TC", "agnews")):
        write_benchmark(tmp_path / "data", category, task, rows[:12], rows[12:])
    out = tmp_path / "out"
    flags = ["--recipe", name, "--model", save_model(kind, tmp_path / "model"), "--data", str(tmp_path / "data"), *more]
    assert main(["continual", *flags, "--out", str(out)]) == 2 and not out.exists()
    assert main(["continual", *flags, "--partial", "--seeds", "1", "--out", str(out)]) == 0
    table = (out / "table.txt").read_text()
    assert "Lacking in this copy of the data, and left out: yahoo." in table
    last = "OSF agnews" if name == "osf-t5" else "PS-LoRA agnews"
    told = " ".join(table.split())
    assert "after dbpedia amazon agnews" in told and last in told and ("O-LoRA agnews" in told) == (name != "osf-t5")


@pytest.mark.usefixtures("blank_pictures")
def test_osfs_recipe_on_a_part_of_trace(tmp_path):
    for task in ("C-STANCE", "FOMC"):
        (tmp_path / "data" / task).mkdir(parents=True)
        rows = [{"prompt": f"{WORDS[i % 10]} {i}?", "answer": "AB"[i % 2]} for i in range(16)]
        for half, part in (("train", rows[:12]), ("test", rows[12:])):
            (tmp_path / "data" / task / f"{half}.json").write_text(json.dumps(part))
    flags = ["--recipe", "osf-llama", "--model", save_model("causal", tmp_path / "model"), "--partial"]
    assert main(["continual", *flags, "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]) == 0
    told = " ".join((tmp_path / "out" / "table.txt").read_text().split())
    assert "OSF FOMC" in told and "left out: MeetingBank, Py150, ScienceQA" in told
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["methods"]["OSF"].items() >= {"mrr": 0.1, "trr": 0.8, "layers": None}.items()
