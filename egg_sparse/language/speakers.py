"""The language of a sender, on inputs of one's choice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from egg_sparse.distribution import SparseDistribution
from egg_sparse.language.language import Kind, Language
from egg_sparse.mappings import softmax


@torch.no_grad()
def language_of(
    sender: nn.Module,
    inputs: torch.Tensor | Iterable[Any],
    aux_input: Any = None,
    weights: torch.Tensor | None = None,
    batch_size: int = 1024,
    max_support: int | None = 1024,
) -> Language:
    """The language of a sender.

    A sender that sums over messages speaks its exact language, and so do all senders of one symbol, EGG's
    GumbelSoftmaxWrapper and ReinforceWrapper among them: their symbols have the probabilities softmax(scores). Any
    other sender speaks that of the messages that it sends in evaluation, the most probable ones, and its language is
    not ``exact``. The sender is called in evaluation mode, and then is in the mode that it was in before.

    Args:
        sender: the sender.
        inputs: the inputs ``(N, ...)``, or EGG's batches (a DataLoader), each a tuple of the sender's input, labels,
            the receiver's input and the auxiliary input. Attributes and weights are in their order, so a
            DataLoader must not shuffle.
        aux_input: the auxiliary input, a dict of tensors with N entries; None where there is none, or where the batches
            have it.
        weights: the weights of the inputs ``(N,)``; None for equal ones.
        batch_size: the number of inputs of a call.
        max_support: for a sender of several symbols, the number of messages per input up to which its language is
            exact, and above which it is drawn, if that is more than the sender's own ``max_support``; None for any
            number.

    Returns:
        The language, on the device of the sender's parameters.

    Raises:
        TypeError: the sender returns neither a distribution nor messages, or ``inputs`` or ``aux_input`` have another
            type.
        ValueError: there are no inputs, or ``aux_input`` is given beside batches.

    Example:
        >>> from egg_sparse import SparsemaxWrapper
        >>> class Agent(nn.Module):
        ...     def forward(self, scores, aux_input=None):
        ...         return scores
        >>> sender = SparsemaxWrapper(Agent(), support=None)
        >>> language_of(sender, torch.tensor([[2.0, 0.0, 0.0], [0.5, 0.0, 0.5]])).synonyms()
        1.5
    """
    modes = {module: module.training for module in sender.modules()}
    own_bound: Any = getattr(sender, "max_support", None)
    parameter = next(sender.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    sender.eval()
    if own_bound is not None and (max_support is None or max_support > own_bound):
        sender.max_support = max_support  # type: ignore[assignment]
    try:
        parts = [
            _spoken(sender, _moved(sent, device), _moved(aux, device))
            for sent, aux in _batches(inputs, aux_input, batch_size)
        ]
    finally:
        for module, mode in modes.items():
            module.training = mode
        if own_bound is not None:
            sender.max_support = own_bound
    distributions = [part for part in parts if isinstance(part, SparseDistribution)]
    if len(distributions) == len(parts):
        return Language(distributions, weights)
    messages = torch.cat([part for part in parts if isinstance(part, torch.Tensor)])
    kind: Kind | None = "symbols" if messages.dim() == 1 else None
    language = Language.of_messages(messages, kind, weights)
    language.exact = torch.zeros_like(language.exact)
    return language


def _batches(inputs: Any, aux_input: Any, batch_size: int) -> Iterator[tuple[Any, Any]]:
    if aux_input is not None and not isinstance(aux_input, dict):
        raise TypeError(f"aux_input must be a dict of tensors, got {type(aux_input).__name__}")
    if not isinstance(inputs, torch.Tensor):
        if aux_input is not None:
            raise ValueError("aux_input must be None where inputs are batches, which have their own")
        for batch in inputs:
            if not isinstance(batch, (tuple, list)):
                raise TypeError(
                    f"inputs must be a tensor, or batches that are tuples, got a batch of type {type(batch).__name__}"
                )
            sent, _, _, aux = (*batch, None, None, None)[:4]
            yield sent, aux
        return
    for start in range(0, len(inputs), batch_size):
        part = slice(start, start + batch_size)
        yield inputs[part], None if aux_input is None else {name: value[part] for name, value in aux_input.items()}


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {name: _moved(each, device) for name, each in value.items()}
    return value.to(device) if isinstance(value, torch.Tensor) else value


EGG_WRAPPERS = ("GumbelSoftmaxWrapper", "ReinforceWrapper")
"""EGG's wrappers of an agent that scores symbols."""


def _spoken(sender: nn.Module, sender_input: Any, aux_input: Any) -> SparseDistribution | torch.Tensor:
    """The distribution of the messages, or the messages themselves."""
    distribution: Any = getattr(sender, "distribution", None)
    relaxed: Any = getattr(sender, "with_distribution", None)
    if callable(distribution):
        output = distribution(sender_input, aux_input)
    elif callable(relaxed):
        _, output = relaxed(sender_input, aux_input)
    else:
        output = sender(sender_input, aux_input)
    if isinstance(output, SparseDistribution):
        return output
    if any(ancestor.__name__ in EGG_WRAPPERS for ancestor in type(sender).__mro__):
        agent: Any = sender.agent
        return softmax(agent(sender_input, aux_input))
    if isinstance(output, torch.distributions.Categorical):
        return softmax(output.logits)
    if isinstance(output, torch.distributions.Distribution):
        return output.mode
    message = output[0] if isinstance(output, tuple) else output
    if not isinstance(message, torch.Tensor):
        raise TypeError(f"sender must return a distribution or messages, got {type(message).__name__}")
    if message.is_floating_point() and message.dim() == 2:
        return message.argmax(1)
    return message
