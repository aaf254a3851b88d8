import re

import pytest

from bench.docs import performance, readme
from bench.docs.pages import filled
from bench.docs.readme import README, TABLES, blocks
from bench.results import COLUMNS


@pytest.mark.parametrize("file", TABLES, ids=lambda file: file.name)
def test_the_tables_are_those_of_the_results(file):
    assert filled(file.read_text(), blocks(file)) == file.read_text()


def test_what_it_links_to_is_there():
    links = [link.partition("#") for link in re.findall(r"\]\(([^):]+)\)", README.read_text())]
    assert links and all((README.parent / path).exists() for path, _, _ in links)
    for path, _, heading in links:
        headings = re.findall(r"^#+ (.*)", (README.parent / path).read_text(), re.M) if heading else [""]
        assert heading in {each.lower().replace(" ", "-") for each in headings}, path


def test_a_row_of_a_step_becomes_one_of_the_table(monkeypatch):
    row = {**dict.fromkeys(COLUMNS, ""), "case": "optimizer_step", "variant": performance.OURS, "rank": "full"}
    row |= {"p20_ms": "1.5", "p50_ms": "2.0", "p80_ms": "2.5", "ratio": "3.0", "threads": "2", "device": "no device"}
    row |= {"flop": "2e8", "floor_ms": "1.0"}
    peers = [{**row, "variant": name, "p50_ms": "4.0"} for name in (performance.OSF, performance.MUON)]
    for page in (readme, performance):
        monkeypatch.setattr(page, "read", lambda: [row, *peers, {**row, "p50_ms": "", "failed": "not measured"}])
    steps = performance.steps_on_cpu()
    assert steps.count(f"| {performance.OURS} |") == 1 and "no device" in steps
    # 0.2 GFLOP at 200 GFLOP/s, a quarter of the peers' 4 ms
    assert f"| {performance.OURS} | full | 2 | 2.0 [1.5, 2.5] | 3.0 | 0 | 1 |" in steps and "200 GFLOP/s" in steps
    assert f"take 0.25 of {performance.OSF}" in steps
    assert "No GPU" in readme.step_on_gpu()
    for page in (readme, performance):
        monkeypatch.setattr(page, "read", lambda: [{**row, "driver": "1.0"}])
    assert "Not measured" in performance.steps_on_cpu() and "images/step.png" in readme.step_on_gpu()
