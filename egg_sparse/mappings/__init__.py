"""Sparse mappings: scores -> SparseDistribution, as pure functions."""

from egg_sparse.mappings.categorical import entmax, entmax15, softmax, sparsemax

__all__ = ["entmax", "entmax15", "softmax", "sparsemax"]
