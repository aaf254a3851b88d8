"""The pictures, drawn from rows that are made up, into a folder that goes."""

from bench.docs import figures
from bench.docs.figures import draw_step
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
    row("transform", "GSR", 1.5),
]


def test_a_picture_is_drawn_from_its_case_alone(tmp_path):
    draw_step(ROWS, tmp_path / "step.svg")
    drawn = (tmp_path / "step.svg").read_text()
    assert all(f"{name} (eager)" in drawn for name in ("GSRAdamW", "AdamW", "Muon")) and "GaLore" not in drawn
    assert "rank full" in drawn and "no device" in drawn and drawn.count("GSRAdamW") == 1


def test_the_same_rows_are_the_same_bytes(tmp_path):
    for suffix in ("svg", "png"):
        draw_step(ROWS, tmp_path / f"step.{suffix}")
        first = (tmp_path / f"step.{suffix}").read_bytes()
        draw_step(ROWS, tmp_path / f"step.{suffix}")
        assert (tmp_path / f"step.{suffix}").read_bytes() == first
    assert first.startswith(b"\x89PNG")


def test_nothing_is_drawn_without_a_gpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(figures, "STEP", tmp_path / "step.png")
    monkeypatch.setattr(figures, "read", lambda: ROWS)
    figures.write()
    assert not list(tmp_path.iterdir()) and "no GPU" in capsys.readouterr().out
    monkeypatch.setattr(figures, "read", lambda: [{**one, "driver": "1.0"} for one in ROWS])
    figures.write()
    assert (tmp_path / "step.png").exists()
