"""Sampling baselines that EGG lacks, for symbols and bit-vectors alike."""

from egg_sparse.estimators.families import BitVectors, BitVectorSampler, Symbols, SymbolSampler
from egg_sparse.estimators.relaxation import RelaxedWrapper, SymbolGameRelaxed
from egg_sparse.estimators.score_function import NeuralBaseline, SymbolGameScoreFunction

__all__ = [
    "BitVectorSampler",
    "BitVectors",
    "NeuralBaseline",
    "RelaxedWrapper",
    "SymbolGameRelaxed",
    "SymbolGameScoreFunction",
    "SymbolSampler",
    "Symbols",
]
