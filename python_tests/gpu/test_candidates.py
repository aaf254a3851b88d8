import pytest
import torch

from bench.cases.rescale_gpu import Drawn, by_candidate


def test_the_rescale(record):
    drawn = Drawn([(1, 1), (3, 2), (1000, 7), (2048, 16), (2049, 3), (16384, 2)], torch.device("cuda"))
    launch = by_candidate(drawn)
    launch()
    found = drawn.error()
    record("g and δ", count=drawn.g.numel(), error=f"{found:.3e}")
    assert found < 1e-6
    results = (drawn.g, drawn.delta, drawn.finite)
    first = [one.clone() for one in results]
    for _ in range(1000):
        launch()
        assert all(torch.equal(one, again) for one, again in zip(first, results))
    drawn.partials[-1] = torch.nan
    launch()
    assert drawn.finite.tolist() == [True] * 5 + [False]
    assert not drawn.delta[-16384:].any() and torch.equal(first[1][:-16384], drawn.delta[:-16384])


def test_what_the_rescale_cannot_take_is_refused():
    drawn = Drawn([(4, 1)], torch.device("cuda"))
    right = {"segments": drawn.table.cuda(), "longest": 4, "partials": drawn.partials, "S": drawn.S, "rho": drawn.rho,
             "floor": 0.0, "g": drawn.g, "delta": drawn.delta, "finite": drawn.finite}  # fmt: skip
    wrong = {"segments": right["segments"].int(), "partials": drawn.partials.double(), "S": drawn.S.double(),
             "rho": drawn.rho.double(), "g": drawn.g[:3], "delta": drawn.delta.half(), "finite": drawn.g,
             "longest": 16385}  # fmt: skip
    for name, one in wrong.items():
        with pytest.raises(RuntimeError, match="k must be from 1" if name == "longest" else f"{name} must"):
            torch.ops.gsr_candidates.rescale(*{**right, name: one}.values())
