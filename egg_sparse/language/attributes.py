"""What messages say of the attributes of their inputs: information, posdis, bosdis, residual entropy, conflicts."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from egg_sparse.language.language import Language, entropy_of

MAX_POSITIONS = 10
"""The number of positions up to which :func:`residual_entropy` enumerates their sets."""

_NO_ENTROPY = 1e-9


def columns_of(language: Language, attributes: torch.Tensor) -> torch.Tensor:
    """The attributes as a matrix ``(N, A)``.

    Raises:
        TypeError: the attributes are not numbers.
        ValueError: the attributes are not of one row per input, or are not finite.
    """
    try:
        attributes = torch.as_tensor(attributes).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"attributes must be a tensor of numbers, got {type(attributes).__name__}") from error
    columns = attributes[:, None] if attributes.dim() == 1 else attributes
    if columns.dim() != 2 or len(columns) != len(language) or not columns.shape[1]:
        raise ValueError(
            f"attributes must have shape (N, A) with N = {len(language)} inputs, got {tuple(attributes.shape)}"
        )
    if not bool(columns.isfinite().all()):
        raise ValueError("attributes must be finite, got NaN or infinity")
    return columns.to(language.index.device)


def checked_attributes(language: Language, attributes: torch.Tensor) -> torch.Tensor:
    """The attributes as whole numbers ``(N, A)``, from 0 on in each column (:func:`columns_of`)."""
    return _numbered(columns_of(language, attributes))


def _numbered(columns: torch.Tensor) -> torch.Tensor:
    """The values of each column as whole numbers from 0 on, without gaps."""
    return torch.stack([column.unique(return_inverse=True)[1] for column in columns.unbind(1)], 1)


def _positions(language: Language) -> torch.Tensor:
    """``(T, L)``: the symbols of each pair's message, numbered at each position."""
    return _numbered(language.messages)[language.index]


def _joined(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Whole numbers that differ where one of two vectors of whole numbers differs, without gaps."""
    return (first * (second.max() + 1) + second).unique(return_inverse=True)[1]


def _mass(codes: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The sum of the weights of each code."""
    return torch.zeros(int(codes.max()) + 1, dtype=weights.dtype, device=weights.device).index_add(0, codes, weights)


def _entropy(codes: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The entropy of a code, in bits."""
    return entropy_of(_mass(codes, weights))


def _information(values: torch.Tensor, symbols: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The mutual information in bits of each column of ``values`` and one of ``symbols``, ``(A, L)``."""
    of_values = torch.stack([_entropy(column, weights) for column in values.unbind(1)])
    of_symbols = torch.stack([_entropy(column, weights) for column in symbols.unbind(1)])
    joint = [[_entropy(_joined(value, symbol), weights) for symbol in symbols.unbind(1)] for value in values.unbind(1)]
    information = of_values[:, None] + of_symbols - torch.stack([torch.stack(row) for row in joint])
    return information.clamp(min=0)


def attribute_information(language: Language, attributes: torch.Tensor) -> torch.Tensor:
    """The mutual information I(A_i; M_j) in bits of each attribute and the symbol at each position.

    What follows the end symbol of a sequence is one more symbol, 0.

    Args:
        language: the language.
        attributes: the inputs' attributes ``(N, A)``, of which equal numbers are equal values.

    Returns:
        ``(A, L)`` double.

    Raises:
        ValueError: ``attributes`` are not of one row per input.

    Example:
        >>> colors, shapes = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
        >>> language = Language.of_messages(torch.stack((shapes + 1, colors + 1), 1))
        >>> attribute_information(language, torch.stack((colors, shapes), 1))[:, :2]
        tensor([[0., 1.],
                [1., 0.]], dtype=torch.float64)
    """
    values = checked_attributes(language, attributes)[language.inputs]
    return _information(values, _positions(language), language.joint)


def _mean_gap(information: torch.Tensor, entropies: torch.Tensor) -> float:
    """The mean over columns with entropy of the gap between the two attributes of most information, by the entropy."""
    ordered = torch.cat((information, torch.zeros_like(information[:1]))).sort(0, descending=True).values
    varies = entropies > _NO_ENTROPY
    gaps = (ordered[0] - ordered[1])[varies] / entropies[varies]
    return min(1.0, float(gaps.mean())) if len(gaps) else 0.0


def posdis(language: Language, attributes: torch.Tensor) -> float:
    r"""Positional disentanglement: how much the symbol at a position says of one attribute alone,

    .. math:: \frac{1}{|J|} \sum_{j \in J} \frac{I(M_j; A^1_j) - I(M_j; A^2_j)}{H(M_j)},

    where :math:`A^1_j` and :math:`A^2_j` are the two attributes that share the most information with position j, and J
    are the positions with entropy. With one attribute the second information is 0. If all messages are equal, they say
    nothing, and the value is 0.

    Args:
        language: the language.
        attributes: the inputs' attributes ``(N, A)``.

    Returns:
        A number from 0 to 1.

    Raises:
        ValueError: ``attributes`` are not of one row per input.

    Example:
        >>> attributes = torch.cartesian_prod(torch.arange(3), torch.arange(3))
        >>> round(posdis(Language.of_messages(attributes + 1), attributes), 6)
        1.0

    Source: Chaabouni et al., "Compositionality and Generalization in Emergent Languages" (ACL 2020), section 3.
    """
    entropies = torch.stack([_entropy(column, language.joint) for column in _positions(language).unbind(1)])
    return _mean_gap(attribute_information(language, attributes), entropies)


def bosdis(language: Language, attributes: torch.Tensor) -> float:
    """Bag-of-symbols disentanglement: how much the count of a symbol says of one attribute alone.

    The formula is that of :func:`posdis`, with the number of times that a symbol occurs in the message, anywhere, in
    place of the symbol at a position. The end symbol of sequences does not count, and of bits only those that are on.

    Args:
        language: the language.
        attributes: the inputs' attributes ``(N, A)``.

    Returns:
        A number from 0 to 1; 0 if no count varies.

    Raises:
        ValueError: ``attributes`` are not of one row per input.

    Example:
        >>> attributes = torch.cartesian_prod(torch.arange(3), torch.arange(3))
        >>> round(bosdis(Language.of_messages(attributes + torch.tensor([1, 4])), attributes), 6)
        1.0

    Source: see :func:`posdis`.
    """
    values = checked_attributes(language, attributes)
    counts = _SymbolCounts(language)
    if not len(counts.symbols):
        return 0.0
    entropies = counts.entropies(None)
    information = []
    for column in values.unbind(1):
        of_value = entropy_of(_mass(column, language.weights))
        information.append(of_value + entropies - counts.entropies(column))
    return _mean_gap(torch.stack(information).clamp(min=0), entropies)


class _SymbolCounts:
    """How often symbols occur in messages, without a table of all messages and symbols.

    Args:
        language: the language.

    Attributes:
        symbols: the symbols that occur ``(S,)``.
    """

    def __init__(self, language: Language) -> None:
        messages = language.messages
        is_counted = torch.ones_like(messages, dtype=torch.bool) if language.kind == "symbols" else messages != 0
        rows, positions = is_counted.nonzero(as_tuple=True)
        self.symbols, symbol = messages[rows, positions].unique(return_inverse=True)
        n_symbols = max(1, len(self.symbols))
        occurring, counts = (rows * n_symbols + symbol).unique(return_counts=True)
        row = occurring // n_symbols
        # the pairs of inputs and messages, each with every symbol that its message has
        per_message = torch.zeros(len(messages), dtype=torch.long, device=row.device).index_add(
            0, row, torch.ones_like(row)
        )
        first = per_message.cumsum(0) - per_message
        repeats = per_message[language.index]
        self.pair = torch.repeat_interleave(torch.arange(len(repeats), device=row.device), repeats)
        offset = torch.arange(len(self.pair), device=row.device) - (repeats.cumsum(0) - repeats)[self.pair]
        entry = first[language.index[self.pair]] + offset
        self.symbol, self.count = occurring[entry] % n_symbols, counts[entry]
        self.language = language

    def entropies(self, values: torch.Tensor | None) -> torch.Tensor:
        """The entropy in bits of each symbol's count ``(S,)``, or of the count together with a value of the inputs."""
        language, mass = self.language, self.language.joint[self.pair]
        of_input = torch.zeros_like(language.inputs) if values is None else values[language.inputs]
        totals = _mass(of_input, language.joint)
        of_pair = of_input[self.pair]
        n_values, n_counts = len(totals), int(self.count.max()) + 1
        cell, where = (self.symbol * n_values + of_pair).unique(return_inverse=True)
        present = _mass(where, mass)
        several, where = ((self.symbol * n_values + of_pair) * n_counts + self.count).unique(return_inverse=True)
        # entropy of the counts above 0, and of the count 0: all that is not present
        absent = (totals[cell % n_values] - present).clamp(min=0)
        terms = torch.zeros(len(self.symbols), dtype=torch.double, device=mass.device)
        terms = terms.index_add(0, several // n_counts // n_values, torch.special.entr(_mass(where, mass)))
        added = torch.special.entr(absent) - torch.special.entr(totals)[cell % n_values]
        terms = terms.index_add(0, cell // n_values, added)
        terms = terms + torch.special.entr(totals).sum()
        return terms / torch.log(torch.tensor(2.0, dtype=torch.double, device=mass.device))


def residual_entropy(language: Language, attributes: torch.Tensor) -> float:
    r"""Residual entropy: what stays unknown of each attribute when each is read from positions of its own,

    .. math:: \min_{P_1, \dots, P_A} \frac{1}{A} \sum_i \frac{H(A_i \mid M_{P_i})}{H(A_i)},

    over all ways to deal the positions out to the attributes; an attribute may get none. It is 0 for a language that
    writes each attribute at positions of its own, whatever it says with them, and 1 for one that says nothing of any.
    An attribute without entropy leaves nothing unknown.

    Args:
        language: the language.
        attributes: the inputs' attributes ``(N, A)``.

    Returns:
        A number from 0 to 1.

    Raises:
        ValueError: ``attributes`` are not of one row per input, or more than 10 positions vary, whose sets are too
            many to enumerate.

    Example:
        >>> attributes = torch.cartesian_prod(torch.arange(3), torch.arange(3))
        >>> residual_entropy(Language.of_messages(attributes.flip(1) + 1), attributes)
        0.0

    Source: Resnick et al., "Capacity, Bandwidth, and Compositionality in Emergent Language Learning" (AAMAS 2020),
    section 3.
    """
    values = checked_attributes(language, attributes)[language.inputs]
    weights = language.joint
    columns = [column for column in _positions(language).unbind(1) if bool((column != column[0]).any())]
    if len(columns) > MAX_POSITIONS:
        raise ValueError(
            f"residual_entropy enumerates the sets of positions: at most {MAX_POSITIONS} may vary, got {len(columns)}"
        )
    n_subsets = 1 << len(columns)
    known = [float(_entropy(value, weights)) for value in values.unbind(1)]
    left = [[0.0] * n_subsets for _ in known]

    def read(subset: int, code: torch.Tensor) -> None:
        """Fills ``left`` for a set of positions, and for all that add later positions to it."""
        said = _entropy(code, weights)
        for i, value in enumerate(values.unbind(1)):
            if known[i] > _NO_ENTROPY:
                unknown = float(_entropy(_joined(value, code), weights) - said)
                left[i][subset] = min(1.0, max(0.0, unknown / known[i]))
        for position in range(subset.bit_length(), len(columns)):
            read(subset | 1 << position, _joined(code, columns[position]))

    read(0, torch.zeros_like(language.inputs))
    best = left[0]
    for own in left[1:]:
        best = [min(best[whole ^ part] + own[part] for part in _subsets(whole)) for whole in range(n_subsets)]
    return best[-1] / values.shape[1] if best[-1] > _NO_ENTROPY else 0.0


def _subsets(whole: int) -> Iterator[int]:
    """The subsets of a set of positions, both as the bits of a number."""
    part = whole
    while part:
        yield part
        part = (part - 1) & whole
    yield 0


def conflict_count(language: Language, attributes: torch.Tensor) -> float:
    r"""Conflict count: how often a symbol at a position stands for another value than usual,

    .. math:: N \min_\phi \sum_j \sum_s \Big( p(M_j = s) - \max_v p(M_j = s, A_{\phi(j)} = v) \Big),

    where :math:`\phi` maps positions to attributes one to one. Positions that no attribute is left for, and attributes
    that no position is left for, do not count. The value is the expected number of conflicts among N inputs; for a
    deterministic language with as many positions as attributes it is the count of the paper.

    Args:
        language: the language.
        attributes: the inputs' attributes ``(N, A)``.

    Returns:
        A number of at least 0: 0 if each position of ``phi`` has a value of its attribute for every symbol.

    Raises:
        ImportError: SciPy is not installed.
        ValueError: ``attributes`` are not of one row per input.

    Example:
        >>> attributes = torch.cartesian_prod(torch.arange(3), torch.arange(3))
        >>> messages = attributes + 1
        >>> messages[0, 0] = 2
        >>> conflict_count(Language.of_messages(messages), attributes)
        1.0

    Source: Kuciński, Korbak, Kołodziej and Miłoś, "Catalytic Role Of Noise And Necessity Of Inductive Biases In The
    Emergence Of Compositional Communication" (NeurIPS 2021), appendix.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise ImportError('conflict_count needs SciPy: pip install "egg_sparse[zoo]"') from error
    values = checked_attributes(language, attributes)[language.inputs]
    weights, positions = language.joint, _positions(language)
    if language.kind == "sequences":
        positions = positions[:, : max(1, int(language.lengths.max()))]
    conflicts = torch.zeros(positions.shape[1], values.shape[1], dtype=torch.double)
    for j, symbols in enumerate(positions.unbind(1)):
        for i, value in enumerate(values.unbind(1)):
            cells, where = (symbols * (value.max() + 1) + value).unique(return_inverse=True)
            mass = _mass(where, weights)
            usual = mass.new_zeros(int(symbols.max()) + 1).scatter_reduce(
                0, cells // (value.max() + 1), mass, "amax", include_self=True
            )
            conflicts[j, i] = weights.sum() - usual.sum()
    rows, columns = linear_sum_assignment(conflicts.clamp(min=0).numpy())
    return round(len(language) * float(conflicts[rows, columns].sum()), 9)
