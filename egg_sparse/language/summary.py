"""All statistics of a language in one dict, with standard errors by a bootstrap over inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from egg_sparse.language.attributes import (
    MAX_POSITIONS,
    bosdis,
    checked_attributes,
    conflict_count,
    posdis,
    residual_entropy,
)
from egg_sparse.language.language import Language
from egg_sparse.language.topography import Distance, Topography

Statistics = dict[str, float]


def statistics(
    language: Language,
    attributes: torch.Tensor | None = None,
    inputs: torch.Tensor | None = None,
    input_distance: Distance | None = "hamming",
    message_distance: Distance | None = None,
    mass: float = 0.95,
) -> Statistics:
    """All statistics of a language.

    Args:
        language: the language.
        attributes: the inputs' attributes ``(N, A)``; None to leave out what needs them.
        inputs: the inputs ``(N, ...)``, for the topographic similarity; None to compare the attributes, if there are
            any.
        input_distance: the distance of inputs, or of attributes (:func:`topographic_similarity`); None to leave out the
            topographic similarity.
        message_distance: the distance of messages; None for "edit" of sequences, else "hamming".
        mass: the probability that the lexicon covers.

    Returns:
        The statistics by name. All languages have ``entropy``, ``conditional_entropy`` and ``information`` in bits,
        ``perplexity``, ``messages_used``, ``synonyms``, ``inputs_per_message``, ``lexicon_size`` and ``exact``, the
        share of inputs whose support is complete. Sequences have ``length``, ``length_of_types`` and ``abbreviation``.
        Attributes add ``posdis``, ``bosdis``, ``conflict_count`` and, for up to 10 positions, ``residual_entropy``;
        inputs or attributes add ``topsim`` and ``topsim_pearson``.

    Raises:
        ImportError: there are attributes, and SciPy is not installed.
        ValueError: attributes, inputs, a distance or ``mass`` are not as described.

    Example:
        >>> attributes = torch.cartesian_prod(torch.arange(3), torch.arange(3))
        >>> found = statistics(Language.of_messages(attributes + 1), attributes)
        >>> {name: round(found[name], 3) for name in ("information", "synonyms", "length", "posdis", "topsim")}
        {'information': 3.17, 'synonyms': 1.0, 'length': 2.0, 'posdis': 1.0, 'topsim': 1.0}
    """
    return _evaluator(language, attributes, inputs, input_distance, message_distance, mass)(language)


def standard_errors(
    language: Language,
    attributes: torch.Tensor | None = None,
    inputs: torch.Tensor | None = None,
    input_distance: Distance | None = "hamming",
    message_distance: Distance | None = None,
    mass: float = 0.95,
    n_resamples: int = 100,
    seed: int = 0,
) -> Statistics:
    """The standard errors of :func:`statistics`, by a bootstrap over the inputs.

    N inputs are drawn with replacement, in proportion to their weights, ``n_resamples`` times; the standard error of a
    statistic is its standard deviation over these draws. It says how far the statistic is from that of all inputs from
    which these N were drawn. Two draws of one input are no pair of the topographic similarity.

    Args:
        language: the language, of at least two inputs.
        attributes: as for :func:`statistics`.
        inputs: as for :func:`statistics`.
        input_distance: as for :func:`statistics`.
        message_distance: as for :func:`statistics`.
        mass: as for :func:`statistics`.
        n_resamples: the number of draws, at least 2.
        seed: the seed of the draws.

    Returns:
        The standard errors by the names of the statistics.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> errors = standard_errors(Language.of_messages(torch.randint(0, 9, (500,), generator=generator)))
        >>> 0.005 < errors["entropy"] < 0.02
        True

    Source: Efron, "Bootstrap Methods: Another Look at the Jackknife" (Annals of Statistics, 1979).
    """
    if n_resamples < 2:
        raise ValueError(f"n_resamples must be at least 2, got {n_resamples}")
    evaluate = _evaluator(language, attributes, inputs, input_distance, message_distance, mass)
    generator = torch.Generator().manual_seed(seed)
    weights, n = language.weights.cpu(), len(language)
    draws = torch.multinomial(weights.expand(n_resamples, n), n, replacement=True, generator=generator)
    counts = torch.zeros(n_resamples, n, dtype=torch.double).scatter_add(1, draws, torch.ones_like(draws).double())
    found = [evaluate(language.weighted(row)) for row in counts]
    return {name: float(torch.tensor([each[name] for each in found]).double().std()) for name in found[0]}


def exact_and_greedy(language: Language, *args: Any, **options: Any) -> dict[str, Statistics]:
    """The statistics of a language and of its most probable messages, side by side.

    Args:
        language: the language.
        args: further arguments of :func:`statistics`.
        options: further options of :func:`statistics`.

    Returns:
        Two dicts of statistics, "exact" and "greedy".
    """
    return {
        "exact": statistics(language, *args, **options),
        "greedy": statistics(language.greedy(), *args, **options),
    }


def _evaluator(
    language: Language,
    attributes: torch.Tensor | None,
    inputs: torch.Tensor | None,
    input_distance: Distance | None,
    message_distance: Distance | None,
    mass: float,
) -> Callable[[Language], Statistics]:
    """The function from a language of these inputs to its statistics, with the distances computed once."""
    if attributes is not None:
        attributes = checked_attributes(language, attributes)
    compared = attributes if inputs is None else inputs
    between_messages = message_distance or ("edit" if language.kind == "sequences" else "hamming")
    topography = None
    if compared is not None and input_distance is not None:
        topography = Topography(language, compared, input_distance, between_messages)
    has_few_positions = language.messages.shape[1] - (language.kind == "sequences") <= MAX_POSITIONS

    def evaluate(language: Language) -> Statistics:
        found: Statistics = {
            "entropy": language.entropy(),
            "conditional_entropy": language.conditional_entropy(),
            "information": language.information(),
            "perplexity": language.perplexity(),
            "messages_used": language.messages_used(),
            "synonyms": language.synonyms(),
            "inputs_per_message": language.inputs_per_message(),
            "lexicon_size": language.lexicon_size(mass),
        }
        if language.kind == "sequences":
            found["length"] = language.expected_length()
            found["length_of_types"] = language.mean_length_of_types()
            found["abbreviation"] = language.abbreviation()
        if attributes is not None:
            found["posdis"] = posdis(language, attributes)
            found["bosdis"] = bosdis(language, attributes)
            found["conflict_count"] = conflict_count(language, attributes)
            if has_few_positions:
                found["residual_entropy"] = residual_entropy(language, attributes)
        if topography is not None:
            found["topsim"] = topography.similarity(language, "spearman")
            found["topsim_pearson"] = topography.similarity(language, "pearson")
        return {**found, "exact": float((language.weights * language.exact).sum())}

    return evaluate
