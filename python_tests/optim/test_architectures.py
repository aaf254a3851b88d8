"""Which weights are taken of transformers' architectures: by the model, by its names alone, and as the table says."""

import json

import pytest

from python_tests.optim.architectures import TABLE, build, kinds

EXPECTED = json.loads(TABLE.read_text())


def test_the_table_holds_sixty_architectures():
    assert len(EXPECTED) >= 60 and all(found["taken"] for found in EXPECTED.values())


@pytest.mark.parametrize("name", EXPECTED)
def test_the_weights_taken(name):
    model = build(name)
    assert kinds(model) == EXPECTED[name]
    assert kinds(dict(model.named_parameters()))["taken"] == EXPECTED[name]["taken"]
