"""The pictures, drawn from rows that are made up, into a folder that goes."""

import pytest

from bench.docs.figures import PICTURES, draw
from bench.results import COLUMNS

BLANK = dict.fromkeys(COLUMNS, "")
SETTING = {"model": "none", "shape": "3 matrices", "dtype": "fp32 x fp16", "rank": "full", "device": "no device"}


def row(case, variant, ms, **others):
    times = {"p20_ms": str(0.9 * ms), "p50_ms": str(ms), "p80_ms": str(1.2 * ms), "floor_ms": str(ms / 2)}
    work = {"flop": "1000000000", "bytes": "2000000", "launch": "eager"}
    return {**BLANK, **SETTING, **times, **work, "case": case, "variant": variant, **others}


ROWS = [
    *(row("optimizer_step", variant, ms) for variant, ms in (("GSRAdamW", 2.0), ("AdamW", 1.0), ("Muon", 9.0))),
    row("optimizer_step", "OSF", 1.0, failed="not measured: No module named 'peft'", p50_ms=""),
    row("optimizer_step", "GSRAdamW", 3.0, rank="8"),
    *(row("transform", variant, ms) for variant, ms in (("GSR", 1.5), ("bare products", 1.0))),
    *(
        row("training_step", variant, ms, tokens=str(tokens), ratio=str(ratio))
        for tokens in (128, 256)
        for variant, ms, ratio in (("AdamW", 10.0, 1.0), ("GSRAdamW", 11.0, 1.1), ("Muon", 12.0, 1.2))
    ),
    *({**BLANK, "case": "ceilings", "variant": name, "rate": "1.5"} for name in ("fp32", "memory")),
]


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_drawn_from_its_cases_alone(tmp_path, name):
    cases, _ = PICTURES[name]
    others = [case for case in ("ceilings", "optimizer_step", "transform", "training_step") if case not in cases]
    assert tmp_path / f"{name}.svg" in draw([one for one in ROWS if one["case"] not in others], tmp_path)
    without = [one for one in ROWS if one["case"] != cases[-1]]
    assert tmp_path / f"{name}.svg" not in draw(without, tmp_path)


def test_the_same_rows_are_the_same_bytes(tmp_path):
    first = {path.name: path.read_bytes() for path in draw(ROWS, tmp_path)}
    again = {path.name: path.read_bytes() for path in draw(ROWS, tmp_path)}
    assert first == again and set(first) == {f"{name}.{suffix}" for name in PICTURES for suffix in ("svg", "png")}
    assert first["step.png"].startswith(b"\x89PNG")


def test_nothing_is_drawn_from_nothing(tmp_path):
    assert draw([], tmp_path) == [] and not list(tmp_path.iterdir())
