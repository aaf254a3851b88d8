"""The same rows from any copy of the data."""

import json
import random

import pytest

from bench.studies import encoder_rows
from bench.studies.encoder_rows import DIGITS, Source

LABELS = ["bad", "good", "odd"]
SOURCES = {"amazon": Source("SC/amazon"), "dbpedia-a": Source("TC/dbpedia", 0, 2)}


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
    for source in SOURCES.values():
        found = rows(source.folder, 1500, rng)
        # the last test row is also in train
        write(tmp_path / "data", source.folder, found[:1400], [*found[1400:], found[0]])
    return tmp_path / "data"


@pytest.fixture
def manifest(data, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(encoder_rows.sample(data, SOURCES)))
    return path


def test_splits_are_disjoint_and_of_the_stated_size(data, manifest):
    task = encoder_rows.load(data, ("amazon",), manifest, SOURCES)["amazon"]
    assert (len(task.train), len(task.validation), len(task.test)) == (896, 400, 100)
    assert len({row.name for row in (*task.train, *task.validation, *task.test)}) == 1396


def test_a_split_folder_yields_its_own_labels(data, manifest):
    task = encoder_rows.load(data, ("dbpedia-a",), manifest, SOURCES)["dbpedia-a"]
    assert task.labels == ("bad", "good")
    assert {row.label for row in (*task.train, *task.validation, *task.test)} == {"bad", "good"}


def test_order_and_file_of_the_rows_do_not_matter(data, manifest, tmp_path):
    other = tmp_path / "other"
    for source in SOURCES.values():
        pool = [row for s in ("train", "test") for row in json.loads((data / source.folder / f"{s}.json").read_text())]
        random.Random(1).shuffle(pool)
        write(other, source.folder, pool[:200], pool[200:] + rows("more", 300, random.Random(2)))
    names = tuple(SOURCES)
    assert encoder_rows.load(other, names, manifest, SOURCES) == encoder_rows.load(data, names, manifest, SOURCES)


def test_a_missing_row_is_counted(data, manifest):
    path = data / "SC/amazon/train.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:-100]))
    with pytest.raises(ValueError, match=r"lacks \d+ of the 896 rows of amazon/train"):
        encoder_rows.load(data, ("amazon",), manifest, SOURCES)


def test_an_altered_manifest_is_refused(data, manifest):
    content = json.loads(manifest.read_text())
    content["amazon"]["test"]["rows"] = content["amazon"]["test"]["rows"][DIGITS:]
    manifest.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="amazon/test does not match its sha256"):
        encoder_rows.load(data, ("amazon",), manifest, SOURCES)


def test_unknown_task_and_missing_data(data, manifest, tmp_path):
    with pytest.raises(ValueError, match="'imdb' is not in"):
        encoder_rows.load(data, ("imdb",), manifest, SOURCES)
    with pytest.raises(FileNotFoundError, match="--data"):
        encoder_rows.load(tmp_path / "nowhere", ("amazon",), manifest, SOURCES)


def test_the_committed_manifest_is_whole():
    listed = json.loads(encoder_rows.MANIFEST.read_text())
    assert set(listed) == set(encoder_rows.SOURCES)
    for splits in listed.values():
        names = {
            split: [entry["rows"][i : i + DIGITS] for i in range(0, len(entry["rows"]), DIGITS)]
            for split, entry in splits.items()
        }
        assert {split: encoder_rows._digest(found) for split, found in names.items()} == {
            split: entry["sha256"] for split, entry in splits.items()
        }
        assert len(set().union(*names.values())) == sum(map(len, names.values()))
