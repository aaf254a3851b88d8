import re

from bench.readme import README, filled


def test_the_tables_are_those_of_the_results():
    text = README.read_text()
    assert filled(text) == text


def test_what_it_links_to_is_there():
    links = re.findall(r"\]\(([^)#:]+)\)", README.read_text())
    assert links and all((README.parent / link).exists() for link in links)
