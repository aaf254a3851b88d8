"""The same rows from any copy of the data."""

import json
import random

import pytest

from bench.studies import encoder
from bench.studies.encoder import DIGITS, SOURCES, digest

LABELS = list("abcdefghi")
TASKS = ("amazon", "dbpedia-a")


def rows(folder, count, rng):
    return [{"sentence": f"{folder} text {i} é", "label": rng.choice(LABELS)} for i in range(count)]


def write(data, folder, train, test):
    path = data / folder
    path.mkdir(parents=True)
    for name, content in (("labels", LABELS), ("train", train), ("test", test)):
        (path / f"{name}.json").write_text(json.dumps(content))


@pytest.fixture
def data(tmp_path):
    rng = random.Random(0)
    for folder in ("SC/amazon", "TC/dbpedia"):
        found = rows(folder, 1500, rng)
        # the last test row is also in train
        write(tmp_path / "data", folder, found[:1400], [*found[1400:], found[0]])
    return tmp_path / "data"


@pytest.fixture
def manifest(data, tmp_path):
    listed = {}
    for task in TASKS:
        folder, of_task = SOURCES[task]
        train, test = (json.loads((data / folder / f"{split}.json").read_text()) for split in ("train", "test"))
        pools = [{digest(f"{r['label']}\n{r['sentence']}")[:DIGITS] for r in each if r["label"] in LABELS[of_task]}
                 for each in (train, test)]  # fmt: skip
        learned = sorted(pools[0] - pools[1])
        splits = {"train": learned[:896], "validation": learned[-400:], "test": sorted(pools[1] - pools[0])}
        listed[task] = {
            split: {"sha256": digest("\n".join(names)), "rows": "".join(names)} for split, names in splits.items()
        }
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(listed))
    return path


def test_splits_are_disjoint_and_of_the_stated_size(data, manifest):
    found = encoder.rows(data, "amazon", manifest)
    assert {split: len(each) for split, each in found.items()} == {"train": 896, "validation": 400, "test": 100}
    assert len({row["prompt"] for each in found.values() for row in each}) == 1396


def test_a_split_folder_yields_its_own_labels(data, manifest):
    found = [row for each in encoder.rows(data, "dbpedia-a", manifest).values() for row in each]
    assert {tuple(row["options"]) for row in found} == {tuple("abcdefg")}
    assert {row["completion"] for row in found} == set("abcdefg")


def test_order_and_file_of_the_rows_do_not_matter(data, manifest, tmp_path):
    other = tmp_path / "other"
    for folder in ("SC/amazon", "TC/dbpedia"):
        pool = [row for s in ("train", "test") for row in json.loads((data / folder / f"{s}.json").read_text())]
        random.Random(1).shuffle(pool)
        write(other, folder, pool[:200], pool[200:] + rows("more", 300, random.Random(2)))
    for task in TASKS:
        assert encoder.rows(other, task, manifest) == encoder.rows(data, task, manifest)


def test_a_missing_row_is_counted(data, manifest):
    path = data / "SC/amazon/train.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:-100]))
    with pytest.raises(ValueError, match=r"lacks \d+ of the 896 rows of amazon/train"):
        encoder.rows(data, "amazon", manifest)


def test_an_altered_manifest_is_refused(data, manifest):
    content = json.loads(manifest.read_text())
    content["amazon"]["test"]["rows"] = content["amazon"]["test"]["rows"][DIGITS:]
    manifest.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="amazon/test does not match its sha256"):
        encoder.rows(data, "amazon", manifest)


def test_missing_data(manifest, tmp_path):
    with pytest.raises(FileNotFoundError, match="--data"):
        encoder.rows(tmp_path / "nowhere", "amazon", manifest)


def test_the_committed_manifest_is_whole():
    listed = json.loads(encoder.MANIFEST.read_text())
    assert set(listed) == set(SOURCES)
    for splits in listed.values():
        names = {
            split: [entry["rows"][i : i + DIGITS] for i in range(0, len(entry["rows"]), DIGITS)]
            for split, entry in splits.items()
        }
        assert {split: digest("\n".join(found)) for split, found in names.items()} == {
            split: entry["sha256"] for split, entry in splits.items()
        }
        assert len(set().union(*names.values())) == sum(map(len, names.values()))


def test_a_prepared_folder_is_what_the_runner_reads(data, manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(encoder, "MANIFEST", manifest)
    monkeypatch.setattr(encoder, "SOURCES", {task: SOURCES[task] for task in TASKS})
    (tmp_path / "model").mkdir()
    monkeypatch.setattr(encoder, "encoder", lambda: tmp_path / "model")
    recipe, conditions = encoder.prepare(tmp_path / "work", data)
    assert conditions["rows"]["amazon"] == {"train": 896, "validation": 400, "test": 100}
    assert recipe["head_lr"] == "1e-3" and not set(encoder.BY_RUN) & recipe.keys()
    from gsr_kernels.continual.readers import read

    for part, scored in (("tune", 400), ("study", 100)):
        (amazon, topics) = read(tmp_path / "work" / part, ",".join(TASKS)).sources
        assert (len(amazon.train), len(amazon.test)) == (896, scored) and amazon.scored_by == "accuracy"
        # 20 steps of 16
        assert len(topics.train) == 320
