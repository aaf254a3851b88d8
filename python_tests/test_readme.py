from bench.readme import README, filled


def test_the_tables_are_those_of_the_results():
    text = README.read_text()
    assert filled(text) == text
