"""The layouts and formats, the published orders, and every malformed row."""

import csv
import json
import shutil

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from gsr_kernels.continual.examples import Conversation, Example
from gsr_kernels.continual.readers import ORDERS, read, read_retained


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def cl_benchmark(folder, *tasks):
    for task in tasks:
        for split in ("train", "test"):
            write(folder / task / f"{split}.json", [{"label": "Good", "sentence": f"{split} of {task}"}])
        write(folder / task / "labels.json", ["Good", "Bad"])
    return folder


def test_json_lines_are_split_by_seed_or_as_they_are(tmp_path):
    rows = "\n".join(json.dumps({"prompt": f"p{i}", "completion": "c"}) for i in range(20))
    write(tmp_path / "drawn.jsonl", rows)
    write(tmp_path / "fixed" / "train.jsonl", rows)
    write(tmp_path / "fixed" / "test.jsonl", '{"prompt": "q", "completion": "c", "id": 3}')
    drawn, fixed = read(tmp_path).sources
    assert (drawn.name, fixed.name, drawn.scored_by) == ("drawn", "fixed", "exact")
    one, other = drawn.draw(0), drawn.draw(1)
    assert len(one.train) == 16 and len(one.test) == 4 and not set(one.train) & set(one.test)
    assert one != other and one == drawn.draw(0)
    assert fixed.draw(0) == fixed.draw(1) and len(fixed.draw(0, train_rows=5).train) == 5
    assert [source.name for source in read(tmp_path, "fixed, drawn").sources] == ["fixed", "drawn"]


def test_a_split_of_validation_is_read_or_a_share_is_drawn(tmp_path):
    rows = "\n".join(json.dumps({"prompt": f"p{i // 2}", "completion": "c"}) for i in range(20))
    write(tmp_path / "drawn" / "train.jsonl", rows)
    write(tmp_path / "drawn" / "test.jsonl", '{"prompt": "q", "completion": "c"}')
    for file in ("train", "test", "dev"):
        write(tmp_path / "own" / f"{file}.jsonl", f'{{"prompt": "{file}", "completion": "c"}}')
    drawn, own = read(tmp_path).sources
    assert own.draw(0, share=0.5) == own.draw(1) and own.validation == (Example("dev", "c"),)
    assert own.described()["rows"] == {"train": 1, "test": 1, "validation": 1}
    assert drawn.draw(0).validation == () and drawn.draw(0).described() == {**drawn.described(), "metric": "exact"}
    one, other = drawn.draw(0, share=0.3), drawn.draw(1, share=0.3)
    # no copy of a row that is held out is learned
    assert len(one.validation) == 3 and len(one.train) == 14 and not set(one.train) & set(one.validation)
    assert one.test == drawn.test and one != other and one == drawn.draw(0, share=0.3)
    assert one.train == tuple(row for row in drawn.train if row not in one.validation)
    with pytest.raises(ValueError, match=r"validation 0.96 leaves no row of drawn to learn, which has 10 distinct"):
        drawn.draw(0, share=0.96)
    write(tmp_path / "own" / "valid.jsonl", '{"prompt": "v", "completion": "c"}')
    with pytest.raises(ValueError, match="own has the splits valid and dev, and one alone is for validation"):
        read(tmp_path)
    cl_benchmark(tmp_path / "published", "SC/yelp")
    write(tmp_path / "published/SC/yelp/dev.json", [{"label": "Bad", "sentence": "dev"}])
    [yelp] = read(tmp_path / "published").sources
    assert [row.completion for row in yelp.validation] == [" Bad"]
    write(tmp_path / "published/SC/yelp/dev.json", [{"label": "Good", "sentence": "train of SC/yelp"}])
    with pytest.raises(ValueError, match="every row to score by is a row to learn too"):
        read(tmp_path / "published")


def test_lines_may_be_empty_hold_more_keys_and_end_as_on_windows(tmp_path):
    lines = ['{"prompt": "p é", "completion": "c\\n"}', "", "  ", '{"prompt": "", "completion": "d", "more": 1}\r']
    (tmp_path / "2-later.jsonl").write_bytes("\n".join(lines).encode())
    write(tmp_path / "1-first.jsonl", "\n".join([lines[0], lines[0], lines[-1]]))
    (tmp_path / "notes.txt").write_text("not a task")
    first, later = read(tmp_path).sources
    assert (first.name, later.name) == ("1-first", "2-later")
    assert [(row.prompt, row.completion) for row in later.train] == [("p é", "c\n"), ("", "d")]
    # what is there twice is learned or scored, never both
    drawn = first.draw(0)
    assert len(drawn.train) == len(drawn.test) == 1


@pytest.mark.parametrize("layout", ["lines", "benchmark", "trace"])
def test_a_byte_order_mark_is_no_part_of_a_file(layout, tmp_path):
    if layout == "lines":
        write(tmp_path / "a.jsonl", "\n".join(json.dumps({"prompt": f"{i}", "completion": "c"}) for i in range(2)))
    elif layout == "benchmark":
        cl_benchmark(tmp_path, "SC/amazon")
    else:
        for split in ("train", "test"):
            write(tmp_path / "FOMC" / f"{split}.json", [{"prompt": "p", "answer": split}])
    plain = read(tmp_path).sources[0]
    for file in tmp_path.rglob("*.json*"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert read(tmp_path).sources[0] == plain
    for text in ("bare", "marked"):
        (tmp_path / f"{text}.txt").write_bytes(b"\xef\xbb\xbf" * (text == "marked") + b"a text")
    bare, marked = (read_retained(tmp_path / f"{text}.txt", bool) for text in ("bare", "marked"))
    assert bare.test == marked.test


CHAT = [("system", "be short"), ("user", "a?"), ("assistant", "b"), ("user", "c?"), ("assistant", "d")]
TALKED = Conversation("c?", "d", turns=tuple(CHAT[:-1]))
SAID_BY = {"user": "human", "assistant": "gpt"}
FORMS = {
    "messages": ({"messages": [{"role": role, "content": text} for role, text in CHAT], "id": 3}, TALKED),
    "open end": ({"messages": [{"role": role, "content": text} for role, text in [*CHAT, ("user", "e?")]]}, TALKED),
    "sharegpt": (
        {"conversations": [{"from": SAID_BY.get(role, role), "value": text} for role, text in CHAT]},
        TALKED,
    ),
    "alpaca": ({"instruction": "add", "input": "1 2", "output": "3"}, Example("add\n\n1 2\n", "3")),
    "alpaca without input": ({"instruction": "sing", "input": "", "output": "la"}, Example("sing\n", "la")),
    "question": ({"question": "a?", "answer": "b"}, Example("a?\n", "b")),
    "question of a text": ({"context": "a b", "question": "a?", "answer": "b"}, Example("a b\n\na?\n", "b")),
    "label": ({"text": "fine", "label": "good"}, Example("fine\n", "good", ("bad", "good"))),
    "prompt": ({"prompt": "p", "completion": "c"}, Example("p", "c")),
    "MMLU": ({"question": "q", "choices": ["x", "y"], "answer": 1}, Example("q\nA. x\nB. y\n", "B", ("A", "B"))),
    "CMB": (
        {"question": "q", "option": {"A": "x", "B": "y", "C": ""}, "answer": "A"},
        Example("q\nA. x\nB. y\n", "A", ("A", "B")),
    ),
    "MedQA": (
        {"question": "q", "options": {"A": "x", "B": "y"}, "answer": "y", "answer_idx": "B"},
        Example("q\nA. x\nB. y\n", "B", ("A", "B")),
    ),
    "MedQA on the hub": (
        {"question": "q", "options": [{"key": "A", "value": "x"}, {"key": "B", "value": "y"}], "answer_idx": "B"},
        Example("q\nA. x\nB. y\n", "B", ("A", "B")),
    ),
    "MBPP, all": (
        {"text": "Add.", "code": "f = 1", "test_list": ["assert f"], "test_setup_code": "g = 2", "task_id": 1},
        Example("Add. Your code should pass these tests:\n\nassert f\n", "f = 1", test="g = 2\nassert f"),
    ),
    "MBPP": (
        {"prompt": "Add.", "code": "f = 1", "test_list": ["assert f"], "test_imports": ["import re"]},
        Example(
            "Add. Your code should pass these tests:\n\nassert f\n", "f = 1", test="import re\nassert f"
        ),
    ),
    "HumanEval": (
        {"prompt": "def f():\n", "canonical_solution": "    1", "test": "def check(f): f()", "entry_point": "f"},
        Example("def f():\n", "    1", prefix="def f():\n", test="def check(f): f()\ncheck(f)"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("row", "example"), FORMS.values(), ids=FORMS)
def test_a_row_is_told_by_its_keys(row, example, tmp_path):
    other = {"text": "sad", "label": "bad"} if "label" in row else {"prompt": "x", "completion": "y"}
    write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, (row, other))))
    assert read(tmp_path).sources[0].train[0] == example


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"body": "a", "target": "b"},
            "no format has the keys 'body', 'target': call them as one does: ",
        ),
        ({"messages": "a"}, '\'messages\' must be a list of turns {"role": role, "content": text}'),
        ({"messages": [{"role": "user", "content": "a"}]}, "'messages' has no turn of the assistant"),
        (
            {"messages": [{"role": ["user"], "content": "a"}]},
            "a turn whose 'role' is ['user']; there are system, user, ass",
        ),
        (
            {"messages": [{"role": "tool", "content": "a"}]},
            "a turn whose 'role' is 'tool'; there are system, user, ass",
        ),
        ({"conversations": [{"from": "gpt", "value": " "}]}, "has an empty turn of the assistant"),
        ({"conversations": [{"from": "gpt"}]}, "'value' must be a text, got None"),
        ({"instruction": "a", "output": ""}, "'output' is empty"),
        ({"question": "q", "choices": ["x", "y"], "answer": 2}, "'answer' names no single option, got 2 of A, B"),
        ({"Question": "q", "Options": "A x\nB y", "Answer": "AB"}, "names no single option, got 'AB' of A, B"),
        ({"question": "q", "option": 3, "answer": "A"}, "'option' must be a list, a text of lines or by letter, got 3"),
        ({"prompt": "p", "code": "c", "test_list": "t"}, "'test_list' must be a list of texts, got 't'"),
        ({"text": "a", "label": "b"}, "'label' has 1 different values, and a choice is among 2 to 200"),
    ],
)
def test_a_row_of_no_format_is_told_what_is_wanted(row, message, tmp_path):
    write(tmp_path / "a.jsonl", json.dumps(row))
    with pytest.raises(ValueError) as error:
        read(tmp_path)
    assert message in str(error.value) and "a.jsonl" in str(error.value)


def test_all_bad_rows_of_a_file_are_told(tmp_path):
    rows = ["{", '{"prompt": "a", "completion": "b"}', *['{"prompt": "a"}'] * 6]
    write(tmp_path / "a.jsonl", "\n".join(rows))
    with pytest.raises(ValueError) as error:
        read(tmp_path)
    first, *told = str(error.value).splitlines()
    assert first == f"{tmp_path}/a.jsonl: 7 of 8 rows are bad:" and told[-1] == "  and 2 more" and len(told) == 6
    assert "a.jsonl:1: no JSON" in told[0] and "a.jsonl:3: 'completion' must be a text" in told[1]


def test_tasks_come_in_every_kind_of_file_in_the_order_of_their_numbers(tmp_path):
    rows = [{"prompt": "007", "completion": "2024-03-05"}, {"prompt": "NA", "completion": 'a, "b"\nc'}]
    write(tmp_path / "task10.jsonl", "\n".join(map(json.dumps, rows)))
    write(tmp_path / "task2.json", rows)
    with (tmp_path / "task3.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    Dataset.from_list(rows).to_parquet(tmp_path / "task1.parquet")
    Dataset.from_list(rows).save_to_disk(tmp_path / "task20")
    for split in ("train", "test"):
        write(tmp_path / "task4" / f"{split}.json", [{**rows[0], "prompt": split}, rows[1]])
    sources = read(tmp_path).sources
    assert [source.name for source in sources] == ["task1", "task2", "task3", "task4", "task10", "task20"]
    wanted = tuple(Example(**row) for row in rows)
    assert all(source.train == wanted for source in sources if source.name != "task4")
    assert read_retained(tmp_path / "task3.csv", bool).test == wanted
    (tmp_path / "task20" / "state.json").unlink()
    with (tmp_path / "task3.csv").open("a") as file:
        file.write("a,b,c\n")
    with pytest.raises(ValueError, match=r"task3.csv:5: has more fields than the first line has names"):
        read(tmp_path)
    (tmp_path / "task1.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"task1.parquet: no parquet"):
        read(tmp_path)


def test_a_saved_dataset_has_splits_and_names_of_its_classes(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["sad", "glad"])})
    splits = {
        split: Dataset.from_dict({"text": [f"{split} {i}" for i in range(3)], "label": [0, 1, 1]}, features)
        for split in ("train", "test", "validation", "spare")
    }
    DatasetDict(splits).save_to_disk(tmp_path / "moods")
    task = read(tmp_path).sources[0]
    assert task.train[1] == Example("train 1\n", "glad", ("glad", "sad")) and len(task.test) == 3
    assert task.validation[0] == Example("validation 0\n", "sad", ("glad", "sad"))
    assert task.about.endswith("moods, without its spare") and task.scored_by == "accuracy"
    with pytest.raises(ValueError, match="is a saved dataset, which is one task: give the folder that it lies in"):
        read(tmp_path / "moods")
    DatasetDict({"spare": splits["spare"]}).save_to_disk(tmp_path / "none" / "moods")
    with pytest.raises(ValueError, match="has the splits spare: call one of them train, and one test"):
        read(tmp_path / "none")
    shutil.rmtree(tmp_path / "moods" / "test")
    with pytest.raises(ValueError, match="moods: no dataset that save_to_disk wrote"):
        read(tmp_path)


def test_what_is_no_utf8_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\n{"prompt": "a", "completion": "\xff"}')
    with pytest.raises(ValueError, match=r"a\.jsonl:2: no UTF-8: .* at byte"):
        read(tmp_path)


def test_rows_without_a_gold_label_are_left_out_and_counted(tmp_path):
    cl_benchmark(tmp_path, "NLI/MNLI")
    rows = [{"sentence": "a row", "label": "-"}, {"sentence": "another", "label": "Good"}]
    write(tmp_path / "NLI" / "MNLI" / "test.json", rows)
    [task] = read(tmp_path).sources
    assert [row.completion for row in task.test] == [" Good"]
    assert task.about == "NLI: Good, Bad; left out for want of a gold label: 1 rows"


def test_cl_benchmark_asks_as_its_paper_does(tmp_path):
    cl_benchmark(tmp_path, "SC/amazon", "COPA/COPA")
    copa, amazon = read(tmp_path).sources
    assert amazon.train[0].prompt == (
        "What is the sentiment of the following paragraph? Choose one from the option.\nOption: Good, Bad \n"
        "train of SC/amazon\nAnswer:"
    )
    assert amazon.train[0].completion == " Good" and amazon.train[0].options == (" Good", " Bad")
    assert copa.test[0].prompt == "test of COPA/COPA\nAnswer:"
    bare = read(tmp_path, "amazon", instructed=False).sources[0]
    assert bare.train[0].prompt == "train of SC/amazon" and bare.train[0].options == ("Good", "Bad")


def test_a_partial_copy_is_told_and_not_guessed(tmp_path):
    cl_benchmark(tmp_path, "TC/dbpedia", "TC/agnews", "SC/amazon")
    with pytest.raises(ValueError, match="order1 has 4 tasks, and this copy of the data lacks yahoo"):
        read(tmp_path, "order1")
    there = read(tmp_path, "order1", partial=True)
    assert [source.name for source in there.sources] == ["dbpedia", "amazon", "agnews"]
    assert there.lacking == ("yahoo",)


def test_the_orders_are_those_of_the_papers():
    assert ORDERS["order3"] == ("yahoo", "amazon", "agnews", "dbpedia")
    assert len(set(ORDERS["long1"])) == 15
    assert set(ORDERS["long1"]) == set(ORDERS["long2"]) == set(ORDERS["long3"])
    assert (ORDERS["long1"][0], ORDERS["long2"][0], ORDERS["long3"][-1]) == ("MNLI", "MultiRC", "WiC")
    assert len(ORDERS["trace"]) == 8


def test_trace_is_scored_task_by_task(tmp_path):
    for task in ("20Minuten", "FOMC", "own"):
        for split in ("train", "test"):
            write(tmp_path / task / f"{split}.json", [{"prompt": "p", "answer": split}])
    sources = {source.name: source for source in read(tmp_path).sources}
    assert {name: source.scored_by for name, source in sources.items()} == {
        "20Minuten": "sari", "FOMC": "exact", "own": "exact"
    }  # fmt: skip
    assert sources["FOMC"].train[0].prompt == "p\n"
    with pytest.raises(ValueError, match="lacks C-STANCE, MeetingBank, Py150, ScienceQA, NumGLUE-cm, NumGLUE-ds"):
        read(tmp_path, "trace")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"prompt": "a"}', "a.jsonl:2: 'completion' must be a text, got None"),
        ("[1]", 'each line must be {"prompt": text'),
        ("{", "no JSON: Expecting property name"),
        ("{", "at column 2"),
        ("prompt,completion", "no JSON"),
        ('{"prompt": 1, "completion": "b"}', "'prompt' must be a text, got 1"),
        ('{"prompt": "a", "completion": ""}', "'completion' is empty"),
        ('{"prompt": "a", "completion": "b", "options": "b"}', "'options' must be a list of texts"),
        ('{"prompt": "a", "completion": "b", "options": ["b"]}', "'options' must be two texts or more"),
        ('{"prompt": "a", "completion": "b", "options": ["b", "b"]}', "all different"),
        ('{"prompt": "a", "completion": "b", "options": ["c", "d"]}', "'b' is none of the options c, d"),
        ('{"prompt": "a", "completion": "b", "test": 1}', "'test' must be a text, got 1"),
        ('{"prompt": "\\ud800", "completion": "b"}', "no text"),
        ('{"prompt": "a", "completion": "b", "options": ["b", "\\ud800"]}', "no text"),
    ],
)
def test_a_malformed_line_is_named(row, message, tmp_path):
    write(tmp_path / "a.jsonl", '{"prompt": "a", "completion": "b"}\n' + row)
    with pytest.raises(ValueError) as error:
        read(tmp_path)
    assert message in str(error.value) and "a.jsonl:2: " in str(error.value)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("SC/amazon/train.json", [{"sentence": "a"}], "train.json, row 1: 'label' must be a text, got None"),
        ("SC/amazon/train.json", [{"sentence": "a", "label": "Ugly"}], "row 1: 'completion' ' Ugly' is none of the"),
        ("SC/amazon/train.json", {}, "must be a list of at least one row"),
        ("SC/amazon/train.json", "[", "train.json: no JSON"),
        ("SC/amazon/labels.json", ["Good", 1], "labels.json: must be a list of texts"),
        ("XX/yelp/train.json", [{"sentence": "a", "label": "Good"}], "no instruction for the category 'XX'"),
    ],
)
def test_a_malformed_benchmark_is_named(file, content, message, tmp_path):
    cl_benchmark(tmp_path, "SC/amazon")
    write(tmp_path / file, content)
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        read(tmp_path)


@pytest.mark.parametrize("task", ["SC/amazon", "FOMC"])
def test_a_benchmark_that_scores_what_it_teaches_is_refused(task, tmp_path):
    rows = [{"prompt": "p", "answer": f"{i}", "sentence": f"{i}", "label": "Good"} for i in range(3)]
    write(tmp_path / task / "labels.json", ["Good", "Bad"])
    write(tmp_path / task / "train.json", rows)
    write(tmp_path / task / "test.json", [*rows[1:], {**rows[0], "sentence": "new", "answer": "new"}])
    assert len(read(tmp_path).sources[0].test) == 3
    write(tmp_path / task / "test.json", rows[1:])
    with pytest.raises(ValueError, match=f"{task}: every row to score by is a row to learn too"):
        read(tmp_path)


@pytest.mark.parametrize("file", ["SC/amazon/test.json", "SC/amazon/labels.json"])
def test_a_missing_file_is_named(file, tmp_path):
    (cl_benchmark(tmp_path, "SC/amazon") / file).unlink()
    with pytest.raises(FileNotFoundError, match=f"{file} is missing"):
        read(tmp_path)


def test_a_folder_without_tasks_says_what_it_should_hold(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no task. It must hold NAME.jsonl files"):
        read(tmp_path)
    with pytest.raises(FileNotFoundError, match="is no folder"):
        read(tmp_path / "absent")
    write(tmp_path / "half" / "train.jsonl", '{"prompt": "a", "completion": "b"}')
    with pytest.raises(FileNotFoundError, match=r"half/test.jsonl is missing"):
        read(tmp_path)
    write(tmp_path / "half" / "test.jsonl", "")
    with pytest.raises(ValueError, match=r"test.jsonl: is empty"):
        read(tmp_path)


def test_what_is_hidden_double_or_no_test_is_no_task(tmp_path):
    rows = '{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "b"}'
    write(tmp_path / "a.jsonl", rows)
    write(tmp_path / ".a.jsonl", rows)
    write(tmp_path / ".hidden" / "train.jsonl", rows)
    assert [source.name for source in read(tmp_path).sources] == ["a"]
    for split in ("train", "test"):
        write(tmp_path / "b" / f"{split}.jsonl", rows)
    with pytest.raises(ValueError, match="b: every row to score by is a row to learn too"):
        read(tmp_path)
    write(tmp_path / "a" / "train.jsonl", rows)
    with pytest.raises(ValueError, match=r"holds a.jsonl and a/train.jsonl"):
        read(tmp_path)


def test_a_name_of_the_report_is_no_task(tmp_path):
    write(tmp_path / "before.jsonl", '{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "b"}')
    with pytest.raises(ValueError, match="no task may be called 'before'"):
        read(tmp_path)
    write(tmp_path / "one.jsonl", '{"prompt": "a", "completion": "b"}')
    with pytest.raises(ValueError, match=r"one.jsonl: needs a row to learn and one to score"):
        read(tmp_path, "one")


def test_what_was_known_before_is_rows_or_a_text(tmp_path):
    write(tmp_path / "text.txt", "word " * 500)
    text = read_retained(tmp_path / "text.txt", lambda window: len(window) <= 300)
    assert max(len(row.completion) for row in text.test) <= 300
    assert text.scored_by == "loss" and "".join(row.completion for row in text.test) == "word " * 500
    write(tmp_path / "quiz.jsonl", '{"prompt": "a", "completion": "b", "options": ["b", "c"]}')
    assert read_retained(tmp_path / "quiz.jsonl", bool).scored_by == "accuracy"
    write(tmp_path / "empty.txt", " \n")
    with pytest.raises(ValueError, match="holds no text"):
        read_retained(tmp_path / "empty.txt", bool)
    (tmp_path / "bytes.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="no UTF-8"):
        read_retained(tmp_path / "bytes.txt", bool)
    write(tmp_path / "a.xml", "a")
    with pytest.raises(ValueError, match=r"a file of rows, .jsonl, .json, .csv, .parquet, or a .txt file is wanted"):
        read_retained(tmp_path / "a.xml", bool)
