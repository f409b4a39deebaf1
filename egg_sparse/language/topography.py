"""Topographic similarity: whether similar inputs have similar messages, in expectation over the messages."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch

from egg_sparse.language.language import Language, without_rounding_errors

BLOCK = 1 << 22
"""The largest number of pairs that are computed at once."""

KEPT = 1 << 24
"""The number of distances up to which all of them stay in memory: those of 4,096 inputs or messages."""

MAX_RANKS = 1 << 20
"""The number of different distances up to which ranks are exact where not all distances are in memory at once."""

_OfRows = Callable[[slice], torch.Tensor]
Distance = str | Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def edit_distance(
    first: torch.Tensor, second: torch.Tensor, first_lengths: torch.Tensor, second_lengths: torch.Tensor
) -> torch.Tensor:
    """The Levenshtein distances of all pairs of two lists of sequences.

    Args:
        first: sequences ``(n, L)`` of whole numbers.
        second: sequences ``(m, L)``.
        first_lengths: the number of entries of each sequence that count ``(n,)``.
        second_lengths: the same of ``second`` ``(m,)``.

    Returns:
        ``(n, m)`` int16.

    Example:
        >>> words = torch.tensor([[1, 2, 3], [2, 3, 0], [4, 2, 3]])
        >>> edit_distance(words, words[:1], torch.tensor([3, 2, 3]), torch.tensor([3]))[:, 0].tolist()
        [0, 1, 1]
    """
    width = second.shape[1]
    numbers = torch.arange(width + 1, device=first.device, dtype=torch.int16)
    row = numbers[:, None, None].repeat(1, len(first), len(second))
    ends = second_lengths[None, None, :].expand(1, len(first), -1)
    found = row.gather(0, ends)[0]  # of empty sequences
    for i, left in enumerate(first.unbind(1), 1):
        diagonal = row[0].clone()
        row[0] = i
        for j, right in enumerate(second.unbind(1), 1):
            replaced = diagonal + (left[:, None] != right)
            diagonal = row[j].clone()
            row[j] = torch.minimum(torch.minimum(row[j], row[j - 1]) + 1, replaced)
        found = torch.where(first_lengths[:, None] == i, row.gather(0, ends)[0], found)
    return found


def _cosine(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    first, second = first.double(), second.double()
    norms = first.norm(dim=1)[:, None] * second.norm(dim=1)
    return (1 - first @ second.t() / norms).round(decimals=12)  # equal vectors have a distance of 0, not of 1e-16


def _differing(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """``(n, m)`` int32: the number of entries that differ."""
    differ = torch.zeros(len(first), len(second), dtype=torch.int32, device=first.device)
    for left, right in zip(first.unbind(1), second.unbind(1), strict=True):
        differ += left[:, None] != right
    return differ


def _jaccard(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """As SciPy has it: of the entries that are not 0 in both, the share that differ."""
    both_zero = (first == 0).double() @ (second == 0).double().t()
    return _differing(first, second) / (first.shape[1] - both_zero).clamp(min=1)


def _euclidean(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return torch.cdist(first.double(), second.double(), compute_mode="donot_use_mm_for_euclid_dist")


VECTOR_DISTANCES = ("hamming", "jaccard", "cosine", "euclidean")
MESSAGE_DISTANCES = (*VECTOR_DISTANCES, "levenshtein", "edit")


class _Distances:
    """The distances of all pairs of n things.

    Where few different distances are possible, or all of them fit in memory, pairs have whole numbers, *codes*, and
    there is a table of the distance of each code.

    Args:
        things: the things ``(n, ...)``.
        distance: a name, or a function.
        lengths: the lengths of messages ``(n,)``; None for inputs.
        longest: the number of inputs or messages, whichever are more.
    """

    def __init__(self, things: torch.Tensor, distance: Distance, lengths: torch.Tensor | None, longest: int) -> None:
        self.what = "input_distance" if lengths is None else "message_distance"
        names = VECTOR_DISTANCES if lengths is None else MESSAGE_DISTANCES
        if isinstance(distance, str) and distance not in names:
            raise ValueError(f"{self.what} must be a function or one of {', '.join(names)}, got {distance!r}")
        self.things = things if callable(distance) else things.reshape(len(things), -1)
        self.distance = distance
        if distance == "cosine" and not bool((self.things != 0).any(1).all()):
            raise ValueError(f'{self.what} "cosine" is undefined for a vector of zeros')
        self.lengths = torch.zeros(len(things), dtype=torch.long) if lengths is None else lengths
        self.n_rows = max(1, BLOCK // longest)
        self.keeps = len(things) ** 2 <= KEPT
        self.kept: torch.Tensor | None = None
        self.table = self._table()

    def blocks(self, within: slice | None = None) -> Iterator[slice]:
        within = within or slice(0, len(self.things))
        for start in range(within.start, within.stop, self.n_rows):
            yield slice(start, min(start + self.n_rows, within.stop))

    def _table(self) -> torch.Tensor | None:
        """The distance of each code; None for distances of any value."""
        width, device = self.things.shape[-1], self.things.device
        counts = torch.arange(width + 1, dtype=torch.double, device=device)
        if self.distance == "hamming":
            return counts / max(1, width)
        if self.distance == "levenshtein":
            return counts
        if self.distance == "edit":
            return (counts[:, None] / (torch.arange(2 * width + 1, device=device) / 2).clamp(min=0.5)).flatten()
        if not self.keeps:
            return None
        distances = torch.cat([self._computed(rows) for rows in self.blocks()])
        table, codes = without_rounding_errors(distances).unique(return_inverse=True)
        self.kept = codes.int()
        return table

    def codes(self, rows: slice) -> torch.Tensor:
        """``(n_rows, n)``: the codes of the pairs of some things with all."""
        if not self.keeps:
            return self._computed_codes(rows)
        if self.kept is None:
            self.kept = torch.cat([self._computed_codes(block).int() for block in self.blocks()])
        return self.kept[rows]

    def _computed_codes(self, rows: slice) -> torch.Tensor:
        some, things = self.things[rows], self.things
        width = things.shape[1]
        if self.distance == "hamming":
            return _differing(some, things)
        n_pairs = max(1, BLOCK // ((width + 1) * len(things)))
        parts = []
        for start in range(rows.start, rows.stop, n_pairs):
            part = slice(start, min(start + n_pairs, rows.stop))
            parts.append(edit_distance(things[part], things, self.lengths[part], self.lengths).int())
        edits = torch.cat(parts)
        if self.distance == "levenshtein":
            return edits
        return edits * (2 * width + 1) + (self.lengths[rows, None] + self.lengths)

    def _computed(self, rows: slice) -> torch.Tensor:
        some = self.things[rows]
        if self.distance == "cosine":
            return _cosine(some, self.things)
        if self.distance == "euclidean":
            return _euclidean(some, self.things)
        if self.distance == "jaccard":
            return _jaccard(some, self.things)
        assert not isinstance(self.distance, str)
        found, shape = self.distance(some, self.things), (len(some), len(self.things))
        if not isinstance(found, torch.Tensor) or found.shape != shape or not bool(found.isfinite().all()):
            raise ValueError(f"{self.what} must return finite distances of shape {shape}")
        return found.detach().double()

    def values_of(self, codes: torch.Tensor, mass: torch.Tensor, ranked: bool) -> torch.Tensor:
        """The distances of codes of the table, or their ranks by the weights of the codes."""
        assert self.table is not None
        values = self.table[codes]
        if ranked:
            distances, group = values.unique(return_inverse=True)
            values = _ranks(torch.zeros_like(distances).index_add(0, group, mass))[group]
        return values

    def measured(self, weights: _OfRows, ranked: bool) -> _Measured:
        """The distances of all pairs, or their ranks, with the mean and the mean square.

        A rank is the weight of the pairs at a smaller distance, and half of that of the pairs at the same one.
        Distances that differ by rounding errors alone are equal.

        Args:
            weights: the function from rows to the weights of their pairs ``(n_rows, n)``, which sum to 1 over all rows.
            ranked: whether ranks are wanted.
        """
        if self.table is not None:
            mass = torch.zeros_like(self.table)
            for rows in self.blocks():
                mass.index_add_(0, self.codes(rows).flatten(), weights(rows).flatten())
            values = self.values_of(torch.arange(len(mass), device=mass.device), mass, ranked)
            return _Measured(lambda rows: values[self.codes(rows)], *_moments(values, mass))
        if not ranked:
            mean = square = 0.0
            for rows in self.blocks():
                distances = self._computed(rows)
                weighted = weights(rows).mul_(distances)
                mean, square = mean + float(weighted.sum()), square + float(weighted.mul_(distances).sum())
            return _Measured(self._computed, mean, square)
        intervals = _Intervals(self.things.device)
        for rows in self.blocks():
            intervals.add(without_rounding_errors(self._computed(rows)), weights(rows))
        ranks = _ranks(intervals.mass)

        def ranks_of(rows: slice) -> torch.Tensor:
            return ranks[intervals.of(without_rounding_errors(self._computed(rows)))]

        return _Measured(ranks_of, *_moments(ranks, intervals.mass))


class _Measured(NamedTuple):
    """Distances of pairs or their ranks: the function from rows to them, their mean and their mean square."""

    of_rows: _OfRows
    mean: float
    square: float


def _correlation(first: _Measured, second: _Measured, product: float) -> float:
    """The correlation of distances whose mean product is known; 0 if either are all equal."""
    variances = [measured.square - measured.mean**2 for measured in (first, second)]
    if variances[0] <= 1e-12 * first.square or variances[1] <= 1e-12 * second.square:
        return 0.0
    correlation = (product - first.mean * second.mean) / (variances[0] * variances[1]) ** 0.5
    return max(-1.0, min(1.0, correlation))


def _ranks(mass: torch.Tensor) -> torch.Tensor:
    return mass.cumsum(0) - mass / 2


def _moments(values: torch.Tensor, mass: torch.Tensor) -> tuple[float, float]:
    return float((mass * values).sum()), float((mass * values.square()).sum())


class _Intervals:
    """The weights of distances. Each is an interval of its own, until they are too many: then neighbors share one.

    A distance that has the weight of a shared interval stays alone, so that all pairs at that distance have its rank.

    Attributes:
        centers: the mean distances of the intervals, ascending.
        mass: their weights.
    """

    def __init__(self, device: torch.device) -> None:
        self.centers = self.mass = torch.zeros(0, dtype=torch.double, device=device)

    def of(self, distances: torch.Tensor) -> torch.Tensor:
        """The interval of each distance: that with the nearest center."""
        return torch.searchsorted((self.centers[1:] + self.centers[:-1]) / 2, distances)

    def add(self, distances: torch.Tensor, weights: torch.Tensor) -> None:
        values, where = torch.cat((self.centers, distances.flatten())).unique(return_inverse=True)
        mass = torch.zeros_like(values).index_add_(0, where, torch.cat((self.mass, weights.flatten()))).clamp(min=0)
        if len(values) > MAX_RANKS:
            share = mass / mass.sum() * (MAX_RANKS // 2)
            until, is_alone = share.cumsum(0).long(), share >= 1
            starts = (until[1:] != until[:-1]) | is_alone[1:] | is_alone[:-1]
            group = torch.nn.functional.pad(starts.long().cumsum(0), (1, 0))
            zeros = torch.zeros(int(group[-1]) + 1, dtype=torch.double, device=mass.device)
            weight = mass.clamp(min=1e-300)  # intervals without weight have a mean, too
            means = zeros.index_add(0, group, weight * values) / zeros.index_add(0, group, weight)
            values, mass = without_rounding_errors(means), zeros.index_add(0, group, mass)
        self.centers, self.mass = values, mass


class Topography:
    r"""Inputs and messages with their distances, of which :meth:`similarity` is the correlation.

    It keeps the distances between calls where they fit in memory, so that a bootstrap computes them once. Its arguments
    are those of :func:`topographic_similarity`.
    """

    def __init__(
        self,
        language: Language,
        inputs: torch.Tensor,
        input_distance: Distance = "hamming",
        message_distance: Distance = "edit",
    ) -> None:
        inputs = torch.as_tensor(inputs).detach().to(language.index.device)
        if not inputs.dim() or len(inputs) != len(language):
            raise ValueError(
                f"inputs must have the {len(language)} inputs of the language on axis 0, got {tuple(inputs.shape)}"
            )
        if not bool(inputs.isfinite().all()):
            raise ValueError("inputs must be finite, got NaN or infinity")
        if inputs.dim() == 1:
            inputs = inputs[:, None]
        longest = max(len(inputs), len(language.messages))
        self.inputs = _Distances(inputs, input_distance, None, longest)
        self.messages = _Distances(language.messages, message_distance, language.lengths, longest)
        self._speaks = _matrix(language, language.probs)
        self._shares: torch.Tensor | None = None
        self._codes: torch.Tensor | None = None

    def _shares_of_codes(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """What the weights of inputs do not change, computed once: the codes of pairs of messages, and their shares.

        Returns:
            The codes ``(K,)``, and for each the probability that the messages of two inputs have it ``(K, N, N)``; None
            if that is too much to keep.
        """
        if self.messages.table is None or not self.messages.keeps:
            return None
        if self._codes is None:
            blocks = [self.messages.codes(rows).unique() for rows in self.messages.blocks()]
            self._codes = torch.cat(blocks).unique()
        n = len(self.inputs.things)
        if len(self._codes) * n**2 > KEPT:
            return None
        if self._shares is None:
            self._shares = torch.zeros(len(self._codes), n, n, dtype=torch.double, device=self._speaks.device)
            parts = [
                (_transposed_columns(self._speaks, rows).t(), self.messages.codes(rows))
                for rows in self.messages.blocks()
            ]
            for share, code in zip(self._shares, self._codes, strict=True):
                # for each input, the probability of a message at this distance from each message
                near = sum(torch.sparse.mm(speaks, (codes == code).double()) for speaks, codes in parts)
                share.copy_(torch.sparse.mm(self._speaks, near.t()))
        return self._codes, self._shares

    def similarity(self, language: Language, correlation: Literal["spearman", "pearson"] = "spearman") -> float:
        """The topographic similarity of the language, or of :meth:`Language.weighted` ones."""
        if correlation not in ("spearman", "pearson"):
            raise ValueError(f'correlation must be "spearman" or "pearson", got {correlation!r}')
        weights = language.weights
        total = float(1 - weights.square().sum())
        if total <= 0:
            return 0.0

        def input_weights(rows: slice) -> torch.Tensor:
            pairs = weights[rows, None] * (weights / total)
            pairs[torch.arange(len(pairs)), torch.arange(rows.start, rows.stop)] = 0
            return pairs

        ranked = correlation == "spearman"
        of_inputs = self.inputs.measured(input_weights, ranked)
        kept = self._shares_of_codes()
        if kept is not None:
            codes, shares = kept
            pairs = input_weights(slice(0, len(weights)))
            mass = torch.einsum("kij,ij->k", shares, pairs)
            values = self.messages.values_of(codes, mass, ranked)
            expected = torch.einsum("k,kij->ij", values, shares)
            of_messages = _Measured(lambda rows: expected[rows], *_moments(values, mass))
            seen = of_inputs.of_rows(slice(0, len(weights)))
            return _correlation(of_inputs, of_messages, float((pairs * seen * expected).sum()))
        speaks, says = self._speaks, _matrix(language, language.joint)

        def message_weights(rows: slice) -> torch.Tensor:
            pairs = language.marginal[rows, None] * language.marginal
            # two messages of one input are no pair
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
                of_one_input = torch.sparse.mm(_transposed_columns(says, rows), says)
            return pairs.sub_(of_one_input.to_dense()).div_(total)

        of_messages = self.messages.measured(message_weights, ranked)
        product = 0.0
        # where the distances of inputs are not kept, they are computed anew for each block of messages: few large ones
        n, size = len(self.messages.things), max(1, KEPT // BLOCK) * self.messages.n_rows
        for start in range(0, n, size):
            columns = slice(start, min(start + size, n))
            # of every input, the expected distance between its message and each message of the block
            parts = [torch.sparse.mm(speaks, of_messages.of_rows(part).t()) for part in self.messages.blocks(columns)]
            expected = torch.cat(parts, 1)
            heard = _transposed_columns(speaks, columns)
            for rows in self.inputs.blocks():
                seen = torch.sparse.mm(heard, of_inputs.of_rows(rows).mul(input_weights(rows)).t())
                product += float((expected[rows].t() * seen).sum())
        return _correlation(of_inputs, of_messages, product)


def topographic_similarity(
    language: Language,
    inputs: torch.Tensor,
    input_distance: Distance = "hamming",
    message_distance: Distance = "edit",
    correlation: Literal["spearman", "pearson"] = "spearman",
) -> float:
    r"""The expected topographic similarity: the correlation of the distances of inputs and of their messages,

    .. math:: \operatorname{corr}\big(d(x, x'), d(m, m')\big), \qquad
        (x, x') \sim p(x)\, p(x') \text{ with } x \ne x', \quad m \sim p(\cdot \mid x), \; m' \sim p(\cdot \mid x').

    A deterministic language gives the usual correlation over pairs of inputs. It is 0 if all inputs, or all messages,
    are equally far apart. The memory is bounded. For N inputs and U messages the time grows with N² + U² up to 4,096
    inputs or messages, and above that with N² times the number of blocks, U max(N, U) / 2²⁴. Where there are more than
    4,096 inputs or messages and more than a million different distances, close ones share a rank, to four millionths.

    Args:
        language: the language.
        inputs: the inputs, or their attributes ``(N, ...)``.
        input_distance: "hamming" (the share of the entries that differ), "cosine", "euclidean" or "jaccard", or a
            function of ``(n, ...)`` and ``(m, ...)`` to the distances ``(n, m)``, which must be symmetric.
        message_distance: the same, and for messages "levenshtein" (the number of insertions, deletions and
            replacements) and "edit", which divides it by the mean length of the two, as EGG does. Both end at the end
            symbol.
        correlation: "spearman" of the ranks, with the mean rank for equal distances, or "pearson".

    Returns:
        A number from -1 to 1.

    Raises:
        ValueError: the inputs are not those of the language, a distance or correlation has no such name, a function
            returns other distances, or a vector has no cosine.

    Example:
        >>> attributes = torch.cartesian_prod(torch.arange(3), torch.arange(3))
        >>> round(topographic_similarity(Language.of_messages(attributes + 1), attributes), 6)
        1.0

    Source: Brighton and Kirby, "Understanding Linguistic Evolution by Visualizing the Emergence of Topographic
    Mappings" (Artificial Life, 2006).
    """
    return Topography(language, inputs, input_distance, message_distance).similarity(language, correlation)


def _matrix(language: Language, values: torch.Tensor) -> torch.Tensor:
    """A value of each pair of an input and a message as a sparse matrix ``(N, U)``."""
    size = (len(language), len(language.messages))
    return _sparse(torch.stack((language.inputs, language.index)), values, size)


def _sparse(indices: torch.Tensor, values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return torch.sparse_coo_tensor(indices, values, size, check_invariants=False).coalesce()


def _transposed_columns(matrix: torch.Tensor, columns: slice) -> torch.Tensor:
    """Some columns of a sparse matrix, transposed."""
    (rows, which), values = matrix.indices(), matrix.values()
    inside = (which >= columns.start) & (which < columns.stop)
    size = (columns.stop - columns.start, matrix.shape[0])
    return _sparse(torch.stack((which[inside] - columns.start, rows[inside])), values[inside], size)
