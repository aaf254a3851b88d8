"""What the committed measurements promise."""

import pytest

from bench.results import read

ROWS = {
    (row["shape"], row["threads"], row["variant"], row["out_of_span"]): row
    for row in read()
    if row["case"] == "rescale_gradient_cpu"
}
# how much faster than the literal chain
FASTER = {"1024x1024": 2.0, "3072x768": 1.5, "768x3072": 1.5}


@pytest.mark.parametrize("out_of_span", ["drop", "keep"])
@pytest.mark.parametrize("threads", ["1", "2"])
@pytest.mark.parametrize("shape", FASTER)
def test_the_transform_on_a_cpu(shape, threads, out_of_span):
    ours, literal = (ROWS[shape, threads, variant, out_of_span] for variant in ("rescale_gradient", "reference"))
    assert float(ours["ratio"]) <= 1.25
    assert float(literal["p50_ms"]) >= FASTER[shape] * float(ours["p50_ms"])
    assert float(ours["extra_mib"]) <= float(ours["allowed_mib"])
