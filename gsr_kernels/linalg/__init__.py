"""Decompositions: weights in, factors out; nothing here knows of optimizers."""

from gsr_kernels.linalg.randomized_svd import RandomizedSVD, randomized_svd
from gsr_kernels.linalg.svd import SVD, svd

__all__ = ["SVD", "RandomizedSVD", "randomized_svd", "svd"]
