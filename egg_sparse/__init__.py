"""Exact sparse marginalization of discrete messages, for EGG games."""

from egg_sparse.distribution import SparseDistribution
from egg_sparse.games import CommunicationMarg, CommunicationRnnMarg, SenderReceiverRnnMarg, SymbolGameMarg
from egg_sparse.games.marginalize import marginalize
from egg_sparse.senders import RnnSenderSparsemax, TransformerSenderSparsemax
from egg_sparse.version import __version__
from egg_sparse.wrappers import SparseMAPBitVectorWrapper, SparsemaxWrapper, TopKSparsemaxWrapper

__all__ = [
    "CommunicationMarg",
    "CommunicationRnnMarg",
    "RnnSenderSparsemax",
    "SenderReceiverRnnMarg",
    "SparseDistribution",
    "SparseMAPBitVectorWrapper",
    "SparsemaxWrapper",
    "SymbolGameMarg",
    "TopKSparsemaxWrapper",
    "TransformerSenderSparsemax",
    "__version__",
    "marginalize",
]
