"""Everything for a machine with a GPU, and what can be said of it without one: ``python -m bench.gpu``."""
