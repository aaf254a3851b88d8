"""The road of a gradient stays short: files and functions of the package that one step enters."""

import pytest

from bench import step_road


@pytest.mark.parametrize("road, files, functions", [(step_road.attached, 8, 28), (step_road.fused, 10, 36)])
def test_a_step_enters_few_functions(road, files, functions):
    found = road()
    assert 3 <= len({file for file, _ in found}) <= files and len(found) <= functions
