"""Sparse mappings: scores -> SparseDistribution, as pure functions."""

from egg_sparse.mappings.active_set import sparsemap_active_set
from egg_sparse.mappings.categorical import entmax, entmax15, softmax, sparsemax
from egg_sparse.mappings.chain import sparsemap_chain
from egg_sparse.mappings.marginals import sparsemap_marginals
from egg_sparse.mappings.sequences import sequence_distribution
from egg_sparse.mappings.sparsemap import sparsemap_bit_vectors
from egg_sparse.mappings.topk import topk_bit_vectors, topk_sparsemax

__all__ = [
    "entmax",
    "entmax15",
    "sequence_distribution",
    "softmax",
    "sparsemap_active_set",
    "sparsemap_bit_vectors",
    "sparsemap_chain",
    "sparsemap_marginals",
    "sparsemax",
    "topk_bit_vectors",
    "topk_sparsemax",
]
