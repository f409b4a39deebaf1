"""The exact expected loss as EGG games."""

from egg_sparse.games.marginal import CommunicationMarg, SymbolGameMarg

__all__ = ["CommunicationMarg", "SymbolGameMarg"]
