"""Exact statistics of a language, from the distribution of messages for each input."""

from egg_sparse.language.attributes import attribute_information, bosdis, conflict_count, posdis, residual_entropy
from egg_sparse.language.exports import emlangkit_arrays, sent_messages, write_elcc
from egg_sparse.language.language import Language, symbols_of
from egg_sparse.language.speakers import language_of
from egg_sparse.language.summary import exact_and_greedy, standard_errors, statistics
from egg_sparse.language.topography import topographic_similarity

__all__ = [
    "Language",
    "attribute_information",
    "bosdis",
    "conflict_count",
    "emlangkit_arrays",
    "exact_and_greedy",
    "language_of",
    "posdis",
    "residual_entropy",
    "sent_messages",
    "standard_errors",
    "statistics",
    "symbols_of",
    "topographic_similarity",
    "write_elcc",
]
