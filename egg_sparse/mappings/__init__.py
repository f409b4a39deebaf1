"""Sparse mappings: scores -> SparseDistribution, as pure functions."""

from egg_sparse.mappings.categorical import entmax, entmax15, softmax, sparsemax
from egg_sparse.mappings.sparsemap import sparsemap_bit_vectors, sparsemap_marginals
from egg_sparse.mappings.topk import topk_bit_vectors, topk_sparsemax

__all__ = [
    "entmax",
    "entmax15",
    "softmax",
    "sparsemap_bit_vectors",
    "sparsemap_marginals",
    "sparsemax",
    "topk_bit_vectors",
    "topk_sparsemax",
]
