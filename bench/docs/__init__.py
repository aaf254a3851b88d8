"""The writers of what the documentation shows of results: ``python -m bench docs``."""
