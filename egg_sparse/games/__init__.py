"""The exact expected loss as EGG games."""

from egg_sparse.games.marginal import CommunicationMarg, SymbolGameMarg
from egg_sparse.games.sequences import CommunicationRnnMarg, SenderReceiverRnnMarg

__all__ = ["CommunicationMarg", "CommunicationRnnMarg", "SenderReceiverRnnMarg", "SymbolGameMarg"]
