"""Language: the distribution of messages for each of N inputs, and the statistics that need nothing else."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Literal

import torch

from egg_sparse.distribution import SparseDistribution

Kind = Literal["symbols", "bits", "sequences"]


def symbols_of(message: torch.Tensor) -> torch.Tensor:
    """The symbols ``(B, L)`` of sequences, ids or one-hot rows ``(B, L, V)``, zeros from the end symbol on.

    Example:
        >>> symbols_of(torch.tensor([[3, 0, 2], [1, 2, 0]]))
        tensor([[3, 0, 0],
                [1, 2, 0]])
    """
    symbols = message.argmax(-1) if message.dim() == 3 else message
    return symbols * (symbols != 0).long().cumprod(1)


def entropy_of(probs: torch.Tensor) -> torch.Tensor:
    r"""The entropy in bits over the last axis, :math:`-\sum_i p_i \log_2 p_i`."""
    entropies = torch.special.entr(probs).sum(-1) / torch.log(torch.tensor(2.0, dtype=probs.dtype, device=probs.device))
    return entropies.clamp(min=0)  # a probability of 1 may be above it by a rounding error


def correlation(x: torch.Tensor, y: torch.Tensor) -> float:
    """The Pearson correlation of two vectors; 0 if one of them is constant."""
    x, y = x - x.mean(), y - y.mean()
    scale = float((x.square().sum() * y.square().sum()).sqrt())
    return float((x * y).sum()) / scale if scale > 0 else 0.0


def without_rounding_errors(values: torch.Tensor, bits: int = 40) -> torch.Tensor:
    """Numbers with so many bits of precision, so that those are equal that differ by rounding errors alone."""
    significand, exponent = torch.frexp(values)
    return torch.ldexp((significand * 2**bits).round() / 2**bits, exponent)


def ranks_of(values: torch.Tensor) -> torch.Tensor:
    """The ranks of a vector's values, from 0; equal values have the mean of their ranks."""
    _, group, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0)
    return (last - (counts + 1) / 2).double()[group]


class Language:
    r"""A language: a distribution :math:`p(m \mid x)` over messages for each of N inputs, and weights of the inputs.

    It holds the T pairs of an input and a message of non-zero probability, and each of the U different messages once.
    All statistics are sums over these pairs: they are exact, where statistics of sampled messages are estimates. They
    are computed in double precision, on the device of the distributions.

    Args:
        distributions: the distributions of the inputs' messages, a batch or an iterable of batches, one input after
            the other. A support that was bounded by resampling enters with its normalized weights: its statistics are
            estimates, and ``exact`` tells.
        weights: the weights of the inputs ``(N,)``, non-negative, which need not sum to 1; None for equal ones.

    Attributes:
        kind: "symbols", "bits" or "sequences".
        messages: the different messages ``(U, L)`` long: a symbol (L = 1), D bits (L = D) or a sequence, 0 from its end
            symbol on.
        lengths: the lengths of the messages ``(U,)``: the number of symbols before the end symbol for sequences, else
            L.
        inputs: the input of each pair ``(T,)``.
        index: the message of each pair ``(T,)``, a row of ``messages``.
        probs: the probability of each pair's message, given its input ``(T,)``.
        weights: the weights of the inputs ``(N,)``, which sum to 1.
        exact: whether the input's support is complete ``(N,)`` bool.

    Raises:
        TypeError: ``distributions`` is not of SparseDistributions.
        ValueError: there are no inputs, the batches are of different kinds of messages, a vector is not of zeros and
            ones, or the weights have another shape, are negative or not finite, or are all 0.

    Example:
        >>> speaks = SparseDistribution(torch.tensor([[4, 4, 7], [9, 4, 7]]), torch.tensor([[0.5, 1, 1], [0.5, 0, 0]]))
        >>> language = Language(speaks)
        >>> language
        Language(3 inputs, 3 messages, symbols)
        >>> round(language.entropy(), 4), round(language.conditional_entropy(), 4), round(language.information(), 4)
        (1.4591, 0.3333, 1.1258)
    """

    def __init__(
        self,
        distributions: SparseDistribution | Iterable[SparseDistribution],
        weights: torch.Tensor | None = None,
    ) -> None:
        batches = [distributions] if isinstance(distributions, SparseDistribution) else list(distributions)
        parts: list[tuple[torch.Tensor, ...]] = []
        n_inputs, kinds = 0, set()
        for batch in batches:
            if not isinstance(batch, SparseDistribution):
                raise TypeError(f"distributions must be SparseDistributions, got {type(batch).__name__}")
            kind, messages = _readable(batch)
            kinds.add((kind, messages.shape[2] if kind == "bits" else None))
            rows, examples = batch.mask.nonzero(as_tuple=True)
            weight = batch.weights.detach().double()
            if not bool((weight.sum(0) > 0).all()):
                raise ValueError("distributions must give every input a message, got probabilities of 0 or NaN alone")
            shares = (weight / weight.sum(0))[rows, examples]
            complete = batch.ratios is None and batch.is_exact is None
            exact = batch.is_exact if batch.is_exact is not None else torch.full_like(batch.mask[0], complete)
            parts.append((examples + n_inputs, messages[rows, examples], shares, exact))
            n_inputs += batch.probs.shape[1]
        if not n_inputs:
            raise ValueError("distributions must be of at least one input, got none")
        if len(kinds) > 1:
            raise ValueError(f"distributions must be over messages of one kind, got {sorted(map(str, kinds))}")
        inputs, sent, probs, exacts = zip(*parts, strict=True)
        width = max(messages.shape[1] for messages in sent)
        padded = [torch.nn.functional.pad(messages, (0, width - messages.shape[1])) for messages in sent]
        self.kind: Kind = kind
        self.messages, self.index = torch.cat(padded).unique(dim=0, return_inverse=True)
        is_symbol = self.messages != 0 if kind == "sequences" else torch.ones_like(self.messages)
        self.lengths = is_symbol.sum(1)
        self.inputs, self.probs, self.exact = torch.cat(inputs), torch.cat(probs), torch.cat(exacts)
        self.weights = _checked_weights(weights, self.exact)

    @classmethod
    def of_messages(
        cls, messages: torch.Tensor, kind: Kind | None = None, weights: torch.Tensor | None = None
    ) -> Language:
        """The deterministic language in which every input has one message.

        Args:
            messages: the messages: symbol ids ``(N,)``, sequences of ids ``(N, L)`` or of one-hot rows ``(N, L, V)``,
                bit-vectors ``(N, D)`` floating point, or, with ``kind="symbols"``, one-hot rows ``(N, V)``.
            kind: the kind of the messages; None where their shape and type tell.
            weights: as for the class.

        Raises:
            ValueError: the messages have another shape, or are not of whole numbers of at least 0.

        Example:
            >>> Language.of_messages(torch.tensor([[5, 3, 0], [5, 0, 3]])).messages
            tensor([[5, 0, 0],
                    [5, 3, 0]])
        """
        messages = torch.as_tensor(messages).detach()
        if messages.dim() not in (1, 2, 3) or not messages.numel():
            raise ValueError(f"messages must be (N,), (N, L), (N, L, V) or (N, D), got {tuple(messages.shape)}")
        if kind is None:
            kinds: dict[int, Kind] = {1: "symbols", 2: "bits" if messages.is_floating_point() else "sequences"}
            kind = kinds.get(messages.dim(), "sequences")
        axes = {"symbols": (1, 2), "bits": (2,), "sequences": (2, 3)}
        if kind not in axes:
            raise ValueError(f"kind must be one of {', '.join(axes)}, got {kind!r}")
        if messages.dim() not in axes[kind]:
            raise ValueError(f"messages of kind {kind} must have {axes[kind]} axes, got {tuple(messages.shape)}")
        are_vectors = kind == "bits" or messages.is_floating_point()
        if are_vectors and not bool(((messages == 0) | (messages == 1)).all()):
            raise ValueError("messages must be ids, or vectors of zeros and ones, got other numbers: relaxed messages?")
        if kind == "sequences" and messages.dim() == 2 and messages.is_floating_point():
            raise ValueError(f"messages must be whole numbers, as ids of sequences, got {messages.dtype}")
        if kind == "symbols" and messages.dim() == 2:
            if not bool(((messages == 1).sum(1) == 1).all() & ((messages != 0).sum(1) == 1).all()):
                raise ValueError("messages must be ids (N,) or one-hot rows (N, V) to be symbols, got other rows")
            messages = messages.argmax(1)
        if not messages.is_floating_point() and bool((messages < 0).any()):
            raise ValueError(f"messages must be symbol ids of at least 0, got {int(messages.min())}")
        lengths = None
        if kind == "sequences":
            messages = symbols_of(messages.long())
            if bool((messages[:, -1] != 0).any()):
                messages = torch.nn.functional.pad(messages, (0, 1))
            lengths = (messages != 0).sum(1)[None] + 1
        elif kind == "bits":
            messages = messages.float()
        sent = messages[None] if kind == "bits" else messages.long()[None]
        probs = torch.ones(1, len(messages), device=messages.device)
        return cls(SparseDistribution(sent, probs, validate_args=False, lengths=lengths), weights)

    def __len__(self) -> int:
        return len(self.weights)

    def __repr__(self) -> str:
        return f"Language({len(self)} inputs, {len(self.messages)} messages, {self.kind})"

    def greedy(self) -> Language:
        """The deterministic language of every input's most probable message."""
        best = torch.zeros_like(self.weights).scatter_reduce(0, self.inputs, self.probs, "amax")
        is_best = self.probs == best[self.inputs]
        position = torch.arange(len(self.probs), device=self.probs.device)
        first = torch.full_like(self.exact, len(position), dtype=torch.long)
        first = first.scatter_reduce(0, self.inputs[is_best], position[is_best], "amin")
        chosen = self._copy()
        chosen.inputs = torch.arange(len(self), device=first.device)
        used, chosen.index = self.index[first].unique(return_inverse=True)
        chosen.messages, chosen.lengths = self.messages[used], self.lengths[used]
        chosen.probs = torch.ones_like(self.weights)
        chosen.exact = torch.ones_like(self.exact)
        return chosen

    def weighted(self, weights: torch.Tensor) -> Language:
        """The same language with other weights of the inputs ``(N,)``, as a bootstrap draws them."""
        other = self._copy()
        other.weights = _checked_weights(weights, self.exact)
        return other

    def _copy(self) -> Language:
        copy = object.__new__(type(self))
        copy.__dict__.update({name: value for name, value in vars(self).items() if name not in ("joint", "marginal")})
        return copy

    @functools.cached_property
    def joint(self) -> torch.Tensor:
        """``(T,)``: the probability p(x) p(m | x) of each pair."""
        return self.weights[self.inputs] * self.probs

    @functools.cached_property
    def marginal(self) -> torch.Tensor:
        """``(U,)``: the probability p(m) of each message."""
        return torch.zeros(len(self.messages), dtype=torch.double, device=self.index.device).index_add(
            0, self.index, self.joint
        )

    @property
    def positions(self) -> torch.Tensor:
        """``(T, L)``: the message of each pair."""
        return self.messages[self.index]

    def entropy(self) -> float:
        """The entropy H(M) of the messages, in bits."""
        return float(entropy_of(self.marginal))

    def conditional_entropy(self) -> float:
        """The entropy H(M | X) of the messages, given the input, in bits; 0 for a deterministic language."""
        return max(0.0, float(entropy_of(self.joint)) - self.input_entropy())

    def input_entropy(self) -> float:
        """The entropy H(X) of the inputs, in bits: log2 N if their weights are equal."""
        return float(entropy_of(self.weights))

    def information(self) -> float:
        """The mutual information I(X; M) = H(M) - H(M | X) of inputs and messages, in bits."""
        return max(0.0, self.entropy() - self.conditional_entropy())

    def perplexity(self) -> float:
        """The effective number of messages, 2 to the power of H(M)."""
        return 2 ** self.entropy()

    def synonyms(self) -> float:
        """The mean number of messages of non-zero probability per input."""
        counts = torch.zeros_like(self.weights).index_add(0, self.inputs, torch.ones_like(self.probs))
        return float((self.weights * counts).sum())

    def messages_used(self) -> int:
        """The number of messages of non-zero probability."""
        return int((self.marginal > 0).sum())

    def inputs_per_message(self) -> float:
        """The mean, over the messages used, of the number of inputs that send the message with non-zero probability."""
        return float((self.joint > 0).sum()) / self.messages_used()

    def lexicon_size(self, mass: float = 0.95) -> int:
        """The smallest number of messages whose probabilities sum to at least ``mass``.

        Raises:
            ValueError: ``mass`` is not between 0 and 1.
        """
        if not 0 < mass <= 1:
            raise ValueError(f"mass must be above 0 and at most 1, got {mass}")
        covered = self.marginal.sort(descending=True).values.cumsum(0)
        return min(int((covered < mass - 1e-12).sum()) + 1, self.messages_used())

    def expected_length(self) -> float:
        """The mean length of the messages that are sent: for sequences, the symbols before the end symbol."""
        return float((self.marginal * self.lengths).sum())

    def mean_length_of_types(self) -> float:
        """The mean length of the different messages, however often they are sent."""
        return float(self.lengths[self.marginal > 0].double().mean())

    def abbreviation(self) -> float:
        """Zipf's law of abbreviation: the Spearman correlation of the messages' probabilities and lengths.

        It is negative where frequent messages are short, which is the law, and 0 if all are equally frequent or long.

        Source: Zipf, "Human Behavior and the Principle of Least Effort" (1949). Of emergent languages: Chaabouni et
        al., "Anti-efficient encoding in emergent communication" (NeurIPS 2019).
        """
        used = self.marginal > 0
        # sums of probabilities in single precision that differ by their rounding errors alone have one rank
        probs = without_rounding_errors(self.marginal[used], bits=18)
        return correlation(ranks_of(probs), ranks_of(self.lengths[used]))


def _readable(batch: SparseDistribution) -> tuple[Kind, torch.Tensor]:
    """The kind of a batch's messages, and the messages ``(K, B, L)`` long."""
    messages = batch.messages.detach()
    if batch.lengths is not None:
        return "sequences", messages
    if not messages.is_floating_point():
        return "symbols", messages[:, :, None]
    if batch.vocab_size is not None:
        return "symbols", messages.argmax(2)[:, :, None]
    if not bool(((messages == 0) | (messages == 1)).all()):
        raise ValueError("distributions must be over vectors of zeros and ones, got other numbers")
    return "bits", messages.long()


def _checked_weights(weights: torch.Tensor | None, exact: torch.Tensor) -> torch.Tensor:
    """The weights of the inputs, which sum to 1."""
    if weights is None:
        return torch.full(exact.shape, 1 / len(exact), dtype=torch.double, device=exact.device)
    weights = torch.as_tensor(weights).detach().to(exact.device, torch.double)
    if weights.shape != exact.shape:
        raise ValueError(f"weights must have shape {tuple(exact.shape)}, one per input, got {tuple(weights.shape)}")
    if not bool((weights >= 0).all() & weights.isfinite().all() & (weights.sum() > 0)):
        raise ValueError("weights must be finite, non-negative and not all 0")
    return weights / weights.sum()
