"""Measurements that only a GPU can make: ``python -m bench.gpu``."""
