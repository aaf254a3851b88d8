import csv

import pytest
import torch
from torch import nn

from gsr_kernels import SpectralBasis, attach, plot
from gsr_kernels.methods import GSR, SR
from gsr_kernels.reference import project, rescale, skew
from python_tests.optim.toy import loss_of, make_model, take_steps


@pytest.fixture
def handle():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    handle = attach(model, optimizer, rho=0.7, record_every=1)
    take_steps(model, optimizer, range(2))
    optimizer.zero_grad()
    loss_of(model, 2).backward()
    handle.model = model
    return handle


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_directions_are_the_paper_s_and_change_nothing(handle):
    G = handle.model[3].weight.grad.clone()
    found = handle.directions("3.weight")
    basis = handle.bases["3.weight"]
    N = project(G, basis.U, basis.Vh)
    H, K = skew(N, basis.S)
    torch.testing.assert_close(found["g"], N.diagonal())
    torch.testing.assert_close(found["rescaled"], rescale(N.diagonal(), basis.S, 0.7), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found["turn_left"], H.norm(dim=1))
    torch.testing.assert_close(found["turn_right"], K.norm(dim=1))
    assert torch.equal(handle.model[3].weight.grad, G)


def test_directions_leave_the_state_of_a_method_alone():
    model = make_model()
    handle = attach(model, torch.optim.SGD(model.parameters(), 0.1), [SR(1.0), GSR(0.5)])
    loss_of(model, 0).backward()
    before = {key: value.clone() for key, value in handle.weights[0].state.items()}
    handle.directions("1.weight")
    assert all(torch.equal(handle.weights[0].state[key], value) for key, value in before.items())


def test_directions_without_a_gradient(handle):
    with pytest.raises(ValueError, match=r"one of 1\.weight, 3\.weight, 5\.weight, got '0\.weight'"):
        handle.directions("0.weight")
    handle.model.zero_grad()
    with pytest.raises(ValueError, match=r"between backward\(\) and optimizer\.step\(\)"):
        handle.directions("1.weight")


def test_every_picture_is_written_with_its_numbers(handle, tmp_path):
    found = handle.directions("3.weight")
    rows = {
        "spectra": plot.spectra(handle.bases, handle.bases, tmp_path / "spectra.png"),
        "rescaling": plot.rescaling(found, tmp_path / "rescaling.svg"),
        "energy": plot.energy(handle.metrics(), tmp_path / "energy.png"),
        "rotation": plot.rotation(found, tmp_path / "rotation.png"),
        "forgetting": plot.forgetting([[0.9, 0.1], [0.6, 0.8]], ["a", "b"], tmp_path / "forgetting.png"),
    }
    for name, (figure, axis) in rows.items():
        assert axis.figure is figure
        [picture] = [path for path in tmp_path.glob(f"{name}.*") if path.suffix != ".csv"]
        assert picture.stat().st_size > 1000, name
    assert [float(row["sigma"]) for row in read(tmp_path / "spectra.csv")[:12]] == pytest.approx(
        handle.bases["1.weight"].S.tolist()
    )
    assert [float(row["turn_left"]) for row in read(tmp_path / "rotation.csv")] == found["turn_left"].tolist()
    shares = read(tmp_path / "energy.csv")[0]
    assert sum(float(shares[key]) for key in ("on_diagonal", "rest_of_span", "outside_span")) == pytest.approx(1)
    assert all(float(row["factor"]) > 0 for row in read(tmp_path / "rescaling.csv"))
    lost = {(row["after"], row["task"]): float(row["lost"]) for row in read(tmp_path / "forgetting.csv")}
    assert lost == {("a", "a"): 0, ("b", "a"): pytest.approx(0.3), ("b", "b"): 0}


def test_truncated_and_batched_bases(tmp_path):
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.Parameter(torch.randn(3, 8, 4))

    model = Experts()
    handle = attach(model, torch.optim.SGD(model.parameters(), 0.1), rho=0.5, rank=2)
    model.experts.grad = torch.randn(3, 8, 4)
    plot.spectra(handle.bases, path=tmp_path / "spectra.png")
    plot.rotation(handle.directions("experts"), tmp_path / "rotation.png")
    plot.rescaling(handle.directions("experts"), tmp_path / "rescaling.png")
    assert [len(read(tmp_path / f"{name}.csv")) for name in ("spectra", "rotation", "rescaling")] == [2, 2, 6]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="no recorded step"):
        plot.energy({"w": {"skipped_nonfinite": 0}})
    with pytest.raises(ValueError, match="each of 2 tasks"):
        plot.forgetting([[1.0]], ["a", "b"])


def test_many_weights_and_long_names_hide_nothing(tmp_path):
    bases = {f"model.layers.{i}.self_attn.q_proj.weight": SpectralBasis.of(torch.randn(4, 4)) for i in range(14)}
    figure, axis = plot.spectra(bases, bases, tmp_path / "spectra.png")
    [legend] = figure.legends
    assert len(legend.get_texts()) == 16 and legend.get_window_extent().x0 >= axis.get_window_extent().x1
    assert len({str(line.get_color()) for line in axis.lines}) == 14
    names = [f"a-task-with-a-long-name-{i}" for i in range(15)]
    figure, axis = plot.forgetting([[50.0] * 15] * 15, names, tmp_path / "forgetting.png")
    # the widest number fits into its cell
    cell = axis.get_window_extent().width / 15
    assert all(text.get_window_extent().width < cell for text in axis.texts)
    assert axis.get_tightbbox().x0 >= 0 and axis.get_tightbbox().y0 >= 0
