"""EGG's receivers of several symbols on many messages: what messages have in common is computed once.

A receiver reads all messages of a batch in one call. The messages of an example are the leaves of one tree, and all
examples draw on one vocabulary, so that many of them begin alike. What EGG's encoders compute depends on the message
alone: an RNN encoder needs the states of the distinct prefixes of the batch, and a Transformer the distinct messages.
The results are those of the receiver's own layers, to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from egg_sparse import host

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
#: A state of a layer: the hidden state, and the memory of an LSTM.
_State = tuple[torch.Tensor, ...]


@contextmanager
def shared_prefixes(receiver: Any) -> Iterator[None]:
    """A context in which the encoders of EGG's in a receiver compute once what messages have in common.

    RNN encoders on other devices than the CPU, where finding the distinct prefixes would wait for the device, or under
    autocast, and encoders with a forward method of their own or whose layers have hooks or dropout, stay as they are.
    """
    replaced = []
    for module in receiver.modules() if isinstance(receiver, nn.Module) else ():
        function: Callable[..., torch.Tensor] | None = None
        if not _has_eggs_forward(module):
            continue
        if host.egg_class(module, "RnnEncoder") and _is_plain(module):
            function = _encoded
        elif host.egg_class(module, "TransformerEncoder") and _is_causal(module):
            function = _encoded_by_transformer
        if function is not None:
            module.forward = partial(function, module, module.forward)
            replaced.append(module)
    try:
        yield
    finally:
        for module in replaced:
            vars(module).pop("forward", None)


def _has_eggs_forward(module: nn.Module) -> bool:
    """Whether the forward method of one of EGG's receivers or encoders is the one of EGG's class."""
    cls: Any = host.egg_class(module, "RnnEncoder", "TransformerEncoder", "RnnReceiverGS")
    return cls is not None and type(module).forward is cls.forward and "forward" not in vars(module)


def _is_causal(encoder: Any) -> bool:
    """Whether the Transformer encoder is causal, without dropout, and computes what its class says."""
    base = getattr(encoder, "base_encoder", None)
    return bool(
        getattr(encoder, "causal", False) and base is not None and not (getattr(base, "dropout", 1) and base.training)
    )


def _encoded_by_transformer(
    encoder: Any, plainly: Callable[..., torch.Tensor], message: torch.Tensor, lengths: torch.Tensor | None = None
) -> torch.Tensor:
    """The embeddings ``(N, E)`` after the end symbols of messages ``(N, L)``.

    EGG's own method picks them in a loop over the messages, whose gradient takes time quadratic in their number.
    """
    if torch._C._functorch.is_functorch_wrapped_tensor(message):
        return plainly(message, lengths)
    if lengths is None:
        lengths = host.core.find_lengths(message)
    index = None
    if message.device.type == "cpu":
        rows = torch.cat((message, lengths[:, None]), 1)
        distinct, index = torch.unique(rows, dim=0, return_inverse=True)
        message, lengths = distinct[:, :-1], distinct[:, -1]
    size = message.shape[1]
    is_padding = torch.arange(size, device=message.device) >= lengths[:, None]
    is_later = torch.ones(size, size, dtype=torch.bool, device=message.device).triu(1)
    embedded = encoder.base_encoder(message, key_padding_mask=is_padding, attn_mask=is_later)
    ends = lengths.clamp(max=encoder.max_len - 1)
    found: torch.Tensor = embedded[torch.arange(len(message), device=message.device), ends]
    return found if index is None else found[index]


def _is_plain(encoder: nn.Module) -> bool:
    """Whether the encoder computes what its class says."""
    cell, embedding = getattr(encoder, "cell", None), getattr(encoder, "embedding", None)
    return (
        type(cell) in (nn.RNN, nn.GRU, nn.LSTM)
        and isinstance(cell, nn.RNNBase)
        and not cell.bidirectional
        and not cell.proj_size
        and not (cell.dropout and cell.training)
        and cell.weight_ih_l0.device.type == "cpu"
        and type(embedding) is nn.Embedding
        and embedding.max_norm is None
        and not torch.is_autocast_enabled("cpu")
        and not any(getattr(layer, hooks) for layer in (cell, embedding) for hooks in _HOOKS)
    )


def _encoded(
    encoder: Any, plainly: Callable[..., torch.Tensor], message: torch.Tensor, lengths: torch.Tensor | None = None
) -> torch.Tensor:
    """The last layer's states ``(N, H)`` at the ends of messages ``(N, L)``; ``plainly`` is the encoder's own."""
    is_plain = message.dim() == 2 and not torch._C._functorch.is_functorch_wrapped_tensor(message)
    if not is_plain or message.device.type != "cpu" or not len(message):
        return plainly(message, lengths)
    if lengths is None:
        lengths = host.core.find_lengths(message)
    cell = encoder.cell
    layers = []
    for layer in range(cell.num_layers):
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        layers.append([getattr(cell, f"{name}_l{layer}", None) for name in names])
    return _states_at_ends(layers, _step_of(cell), encoder.embedding, message, lengths)


def reads_plainly(receiver: Any, message: torch.Tensor) -> bool:
    """Whether :func:`output_at_end` gives what the receiver does."""
    return (
        _has_eggs_forward(receiver)
        and type(receiver.cell) in (nn.RNNCell, nn.GRUCell, nn.LSTMCell)
        and type(receiver.embedding) is nn.Linear
        and not any(
            getattr(module, hooks) for module in (receiver, receiver.cell, receiver.embedding) for hooks in _HOOKS
        )
        and message.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._functorch.is_functorch_wrapped_tensor(message)
    )


def output_at_end(receiver: Any, message: torch.Tensor, lengths: torch.Tensor, *inputs: Any) -> Any:
    """The output of EGG's RnnReceiverGS at the end symbols of messages of symbol ids ``(N, L)``.

    The receiver itself calls its agent at every position of one-hot messages.
    """
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    cell, embedding = receiver.cell, receiver.embedding

    def embedded(symbols: torch.Tensor) -> torch.Tensor:
        found = F.embedding(symbols, embedding.weight.t())
        return found if embedding.bias is None else found + embedding.bias

    layer = [getattr(cell, name) for name in names]
    return receiver.agent(_states_at_ends([layer], _step_of(cell), embedded, message, lengths), *inputs)


def _states_at_ends(
    layers: list[list[torch.Tensor | None]],
    step: Callable[[torch.Tensor, torch.Tensor, _State], _State],
    embedded: Callable[[torch.Tensor], torch.Tensor],
    message: torch.Tensor,
    lengths: torch.Tensor,
) -> torch.Tensor:
    symbols, ends = message.detach().numpy(), lengths.detach().cpu().numpy() - 1
    states: list[_State] = []
    outputs = []
    place = np.zeros(len(symbols), dtype=np.int64)  # each message's prefix in the level
    at_end = np.empty(len(symbols), dtype=np.int64)
    n_before = 0
    for position in range(int(ends.max()) + 1):
        goes_on = np.flatnonzero(ends >= position)
        vocabulary = symbols.max() + 1
        prefixes, found = np.unique(place[goes_on] * vocabulary + symbols[goes_on, position], return_inverse=True)
        place[goes_on] = found
        parents = torch.from_numpy(prefixes // vocabulary)
        value = embedded(torch.from_numpy(prefixes % vocabulary))
        grown: list[_State] = []
        for layer, (weight_ih, weight_hh, bias_ih, bias_hh) in enumerate(layers):
            from_input = F.linear(value, weight_ih, bias_ih)  # type: ignore[arg-type]
            if position == 0:
                zeros = value.new_zeros(len(value), weight_hh.shape[1])  # type: ignore[union-attr]
                before: _State = (zeros, zeros)
                from_before = torch.zeros_like(from_input) if bias_hh is None else bias_hh.expand_as(from_input)
            else:
                before = tuple(part[parents] for part in states[layer])
                from_before = F.linear(states[layer][0], weight_hh, bias_hh)[parents]  # type: ignore[arg-type]
            grown.append(step(from_input, from_before, before))
            value = grown[-1][0]
        states = grown
        ended = goes_on[ends[goes_on] == position]
        at_end[ended] = n_before + place[ended]
        n_before += len(prefixes)
        outputs.append(value)
    return torch.cat(outputs)[torch.from_numpy(at_end)]


def _step_of(cell: nn.Module) -> Callable[[torch.Tensor, torch.Tensor, _State], _State]:
    """The function from the gates' parts of input and state ``(N, gates * H)``, and the state, to the next state."""
    if isinstance(cell, (nn.GRU, nn.GRUCell)):
        return _gru
    if isinstance(cell, (nn.LSTM, nn.LSTMCell)):
        return _lstm
    return partial(_rnn, activation=torch.relu if getattr(cell, "nonlinearity", "tanh") == "relu" else torch.tanh)


def _rnn(
    from_input: torch.Tensor, from_before: torch.Tensor, before: _State, activation: Callable[..., torch.Tensor]
) -> _State:
    return (activation(from_input + from_before),)


def _gru(from_input: torch.Tensor, from_before: torch.Tensor, before: _State) -> _State:
    size = before[0].shape[1]
    gates = (from_input[:, : 2 * size] + from_before[:, : 2 * size]).sigmoid()
    reset, update = gates.chunk(2, 1)
    new = torch.tanh(torch.addcmul(from_input[:, 2 * size :], reset, from_before[:, 2 * size :]))
    return (torch.lerp(new, before[0], update),)


def _lstm(from_input: torch.Tensor, from_before: torch.Tensor, before: _State) -> _State:
    size = before[0].shape[1]
    gates = from_input + from_before
    new = gates[:, 2 * size : 3 * size].tanh()
    into, forget, out = (gates[:, i * size : (i + 1) * size].sigmoid() for i in (0, 1, 3))
    memory = forget * before[1] + into * new
    return out * memory.tanh(), memory
