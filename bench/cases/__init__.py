"""One case a file: ``rows()`` yields what it measured, a dictionary a variant."""
