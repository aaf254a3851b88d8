"""The candidates' library and the cases that judge them, as far as they go without a GPU."""

import pytest
import torch

from bench.cases import rescale_gpu, second_product_gpu
from bench.gpu import candidates, nvcc
from bench.models import model
from bench.run import Run, Setting
from bench.timing import H200
from gsr_kernels.backends import cuda
from python_tests.backends.triton.test_cutlass import in_torch

CPU = torch.device("cpu")


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Where libraries are built."""
    monkeypatch.setattr(candidates, "FOLDER", tmp_path)
    return tmp_path


@pytest.mark.skipif(bool(nvcc.setup()["obstacle"]()), reason=nvcc.setup()["obstacle"]())
def test_a_build(folder, capsys):
    assert candidates.main(["--sm", "80"]) == 0
    path = candidates.path_of("80")
    said = capsys.readouterr().out
    assert str(path) in said and "rescale_all<16>" in said
    assert list(folder.iterdir()) == [path]
    # what is there is not built again
    assert candidates.build("80") == path
    torch.ops.load_library(path)

    # what it is for is looked at first, as if these were tensors of a GPU
    row, flag = torch.zeros(4), torch.zeros(1, dtype=torch.bool)
    given = (torch.tensor([[0, 0, 1, 4]]), 4, row, row, row[:1], 0.0, row, row, flag)
    on_gpu = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    with pytest.raises(RuntimeError, match=r"segments must be .n, 4. on a CUDA device"):
        torch.ops.gsr_candidates.rescale.default.redispatch(on_gpu, *given)


def test_a_build_that_fails_leaves_nothing_behind(folder, monkeypatch, capsys):
    monkeypatch.setitem(nvcc.setup(), "obstacle", lambda: "")
    monkeypatch.setitem(nvcc.setup(), "command", lambda source: ["false"])
    monkeypatch.setattr(nvcc, "compiled", lambda source, architecture, target: ("", f"{source.name}: no"))
    assert candidates.main(["--sm", "80"]) == 1
    assert "rescale.cu: no" in capsys.readouterr().out and not list(folder.iterdir())
    monkeypatch.setitem(nvcc.setup(), "obstacle", lambda: "nvcc was not found")
    assert candidates.main([]) == 1 and "cannot be built here: nvcc was not found" in capsys.readouterr().out


@pytest.fixture
def hopper(monkeypatch):
    """A GPU whose candidates have not been looked for yet."""
    monkeypatch.setattr(candidates, "here", lambda: "90a")
    candidates.obstacle.cache_clear()
    yield
    candidates.obstacle.cache_clear()


def test_what_was_brought_along_is_taken_as_it_lies(folder, hopper, monkeypatch, capsys):
    monkeypatch.setitem(nvcc.setup(), "obstacle", lambda: "nvcc was not found")
    with pytest.raises(RuntimeError, match="the candidates were not built"):
        candidates.require()
    path = candidates.path_of("90a")
    path.write_bytes(b"")
    assert candidates.main([]) == 0 and capsys.readouterr().out.strip() == str(path)


def test_a_library_that_does_not_load_is_a_reason(folder, hopper):
    path = candidates.path_of("90a")
    path.write_bytes(b"half of it")
    assert f"{path} does not load" in candidates.obstacle()


def test_outside_of_a_checkout_there_is_a_reason(hopper, monkeypatch, tmp_path):
    monkeypatch.setattr(candidates, "OPERATORS", tmp_path / "operators.cpp")
    assert "checkout of the project alone" in candidates.obstacle()
    nvcc.setup.cache_clear()
    monkeypatch.setattr(nvcc, "ROOT", tmp_path)
    with pytest.raises(RuntimeError, match=r"no setup\.py here"):
        nvcc.setup()


def test_a_library_is_of_its_sources(folder, monkeypatch, tmp_path):
    before = candidates.path_of("90a")
    assert before != candidates.path_of("80")
    monkeypatch.setattr(candidates, "OTHERS", [])
    assert candidates.path_of("90a") != before


@pytest.mark.parametrize(
    "case, refusal", [(rescale_gpu, "candidates were not built"), (second_product_gpu, "built without|not built")]
)
def test_the_cases_predict_and_refuse(case, refusal, folder, hopper):
    rows = list(case.rows(Run(Setting(model("small")), H200, dry=True)))
    assert rows and all(row["floor_ms"] > 0 for row in rows)
    assert len({row["variant"] for row in rows}) >= 2
    with pytest.raises(RuntimeError, match=refusal):
        list(case.rows(Run(Setting(model("small")), H200)))


def test_tritons_side_of_the_rescale_is_right():
    drawn = rescale_gpu.Drawn([(5, 1), (1100, 3), (64, 2)], CPU)
    rescale_gpu.by_triton(drawn)()
    assert drawn.error() <= 1e-6
    drawn.finite[1] = False
    assert not drawn.error() <= 1


def test_the_second_products_operands_are_the_plans(monkeypatch):
    """The plan interpreted, and torch in the place of CUTLASS."""

    monkeypatch.setattr(cuda, "second_product_adamw", in_torch)
    for shape in ((48, 48), (32, 64), (64, 32)):
        setting = Setting(second_product_gpu.Model("tiny", {shape: 2}, {}), None, "fp16", "fp32")
        makers = second_product_gpu.Second(Run(setting, H200, CPU), setting).makers()
        for name in makers.keys() - {second_product_gpu.BARE}:
            trial = makers[name]()
            assert not trial.error() <= trial.tolerance
            trial.run()
            assert trial.error() <= trial.tolerance, (shape, name)
