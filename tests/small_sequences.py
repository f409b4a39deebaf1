"""Games of messages of several symbols that are small enough to enumerate, and their expected loss message by message.

The probabilities come from EGG's own senders, whose samples are replaced by the symbols of a given message.
"""

import itertools
from functools import partial

import entmax as entmax_library
import torch
from torch import nn
from torch.distributions import Categorical

from egg_sparse import RnnSenderSparsemax, SenderReceiverRnnMarg, TransformerSenderSparsemax, host, standin

FEATURES, VOCAB, MAX_LEN, HIDDEN, EMBED, OUTPUTS = 4, 3, 3, 5, 4, 2
MAPPINGS = {
    "softmax": lambda x: x.softmax(1),
    "sparsemax": lambda x: entmax_library.sparsemax(x, dim=1),
    "entmax15": lambda x: entmax_library.entmax15(x, dim=1),
}


class Agent(nn.Linear):
    """An agent of EGG's: it takes further inputs and ignores them."""

    def forward(self, inputs, *others):
        return super().forward(inputs)


class Acting(nn.Linear):
    """An agent that acts without chance, so that its score-function term is known: the most probable action."""

    def forward(self, inputs, *others):
        logits = super().forward(inputs)
        distribution = Categorical(logits=logits)
        action = logits.argmax(1)
        return action, distribution.log_prob(action), distribution.entropy()


class Receiver(nn.Module):
    """A receiver that is none of EGG's: symbols weigh by their position."""

    def __init__(self, vocab_size=VOCAB, max_len=MAX_LEN):
        super().__init__()
        self.symbols = nn.Embedding(vocab_size, OUTPUTS)
        self.positions = nn.Parameter(torch.randn(max_len + 1))

    def forward(self, message, receiver_input=None, aux_input=None):
        return torch.tanh(self.symbols(message) * self.positions[:, None]).sum(1)


class LengthReceiver(Receiver):
    """A receiver with the four arguments of EGG's."""

    def forward(self, message, receiver_input=None, aux_input=None, lengths=None):
        return super().forward(message) / lengths[:, None]


class KeywordReceiver(Receiver):
    def forward(self, message, receiver_input=None, aux_input=None, **options):
        assert not options
        return super().forward(message)


def distance(sender_input, message, receiver_input, receiver_output, labels, aux_input):
    """A loss that depends on everything, with one metric."""
    error = (receiver_output - sender_input[:, :OUTPUTS]).square().sum(1)
    return error + 0.1 * labels * message.flatten(1).to(error).sum(1), {"error": error}


def wrong(sender_input, message, receiver_input, receiver_output, labels, aux_input):
    """The loss of an action, which has no gradient."""
    miss = (receiver_output.to(labels) - labels).square()
    return miss, {"miss": miss}


RECEIVERS = {
    **{
        f"{cell}-{layers}": lambda cell=cell, layers=layers: host.core.RnnReceiverDeterministic(
            Agent(HIDDEN, OUTPUTS), VOCAB, EMBED, HIDDEN, cell, layers
        )
        for cell in ("rnn", "gru", "lstm")
        for layers in (1, 2)
    },
    "gs": lambda: host.core.RnnReceiverGS(Agent(HIDDEN, OUTPUTS), VOCAB, EMBED, HIDDEN, "gru"),
    "acting": lambda: host.core.RnnReceiverReinforce(Acting(HIDDEN, OUTPUTS), VOCAB, EMBED, HIDDEN, "gru"),
    **{
        f"transformer-{'causal' if causal else 'all'}": lambda causal=causal: (
            host.core.TransformerReceiverDeterministic(
                Agent(EMBED, OUTPUTS), VOCAB, MAX_LEN, EMBED, 2, HIDDEN, 1, causal=causal
            )
        )
        for causal in (True, False)
    },
    "three arguments": Receiver,
    "four arguments": LengthReceiver,
    "keywords": KeywordReceiver,
}


def rnn_senders(cell="rnn", layers=1, vocab_size=VOCAB, max_len=MAX_LEN, **options):
    """Builders of a sender of this package, and of EGG's."""
    sizes = (vocab_size, EMBED, HIDDEN, max_len, layers, cell)
    return (
        lambda: RnnSenderSparsemax(Agent(FEATURES, HIDDEN), *sizes, **{"support": None, **options}),
        lambda: host.core.RnnSenderReinforce(Agent(FEATURES, HIDDEN), *sizes),
    )


def transformer_senders(generate_style="standard", causal=True, layers=1, **options):
    """Builders of a sender of this package, and of the stand-in's, since EGG's does not run in float64."""
    sizes = (VOCAB, EMBED, MAX_LEN, layers, 2, HIDDEN, generate_style, causal)
    return (
        lambda: TransformerSenderSparsemax(Agent(FEATURES, EMBED), *sizes, **{"support": None, **options}),
        lambda: standin.TransformerSenderReinforce(Agent(FEATURES, EMBED), *sizes),
    )


SENDERS = {
    **{f"{cell}-{layers}": partial(rnn_senders, cell, layers) for cell in ("rnn", "gru", "lstm") for layers in (1, 2)},
    **{
        f"{style}-{'causal' if causal else 'all'}": partial(transformer_senders, style, causal, layers)
        for style, layers in (("standard", 1), ("in-place", 2))
        for causal in (True, False)
    },
}


def sharpened(build_ours, build_theirs):
    """Both senders in float64, with the same weights, which make some symbols improbable and others not."""
    sender, theirs = build_ours(), build_theirs()
    is_rnn = hasattr(sender, "hidden_to_output")
    with torch.no_grad():
        for parameter in (sender.hidden_to_output if is_rnn else sender.embedding_to_vocab).parameters():
            parameter *= 2 if is_rnn else 0.5
    weights = {name: value for name, value in sender.state_dict().items() if not name.startswith(("alpha", "control"))}
    theirs.load_state_dict(weights)
    return sender.double(), theirs.double()


def batch_of(size=3):
    return torch.randn(size, FEATURES, dtype=torch.float64), torch.rand(size, dtype=torch.float64)


def all_messages(vocab_size=VOCAB, max_len=MAX_LEN):
    """Every message, as a list of its symbols up to the end symbol, which none of ``max_len`` symbols has."""
    for length in range(max_len + 1):
        for symbols in itertools.product(range(1, vocab_size), repeat=length):
            yield [*symbols, 0] if length < max_len else list(symbols)


def scores_along(theirs, inputs, symbols, monkeypatch):
    """The scores of EGG's sender at every step, if it says these symbols."""
    output = theirs.hidden_to_output if hasattr(theirs, "hidden_to_output") else theirs.embedding_to_vocab
    scores, said = [], iter([*symbols, *[0] * MAX_LEN * 10])
    hook = output.register_forward_hook(lambda _module, _inputs, result: scores.append(result))
    with monkeypatch.context() as patch:
        patch.setattr(
            Categorical, "sample", lambda self, *_: torch.full(self.logits.shape[:1], next(said), dtype=torch.long)
        )
        theirs.train()(inputs, None)
    hook.remove()
    return scores[: len(symbols)]


def probabilities_of_all(theirs, inputs, mapping, monkeypatch, vocab_size=VOCAB, max_len=MAX_LEN):
    """Every message ``(L,)`` with its length, as EGG counts it, and its probability ``(B,)``."""
    for symbols in all_messages(vocab_size, max_len):
        prob = 1
        for symbol, scores in zip(symbols, scores_along(theirs, inputs, symbols, monkeypatch), strict=True):
            prob = prob * mapping(scores)[:, symbol]
        said = [symbol for symbol in symbols if symbol]
        yield torch.tensor(said + [0] * (max_len + 1 - len(said))), len(said) + 1, prob


def enumerated(theirs, receiver, loss, batch, mapping, monkeypatch, entropy_coeff=0.0, length_cost=0.0, acting=0.0):
    """The expected loss over all messages, and the expectations of the game's metrics.

    For a receiver that acts, ``acting`` is the coefficient of its entropy, and its score-function term, whose baseline
    is the mean loss of the other examples, is in the first value.
    """
    inputs, labels = batch
    acts = isinstance(getattr(receiver, "agent", None), Acting)
    probs, losses, lengths, log_probs, entropies = [], [], [], [], []
    for message, length, prob in probabilities_of_all(theirs, inputs, mapping, monkeypatch):
        messages = message.repeat(len(inputs), 1)
        counted = torch.full((len(inputs),), length)
        for_loss = messages
        if host.egg_class(receiver, "RnnReceiverGS"):
            one_hot = torch.nn.functional.one_hot(messages, VOCAB).to(inputs)
            output, for_loss = receiver(one_hot, None, None)[:, length - 1], one_hot[:, length - 1]
        elif isinstance(receiver, Receiver) and not isinstance(receiver, LengthReceiver):
            output = receiver(messages, None, None)
        elif isinstance(receiver, LengthReceiver):
            output = receiver(messages, None, None, counted)
        else:
            output, log_prob, entropy = receiver(messages, None, None, counted)
            log_probs.append(log_prob)
            entropies.append(entropy)
        losses.append(loss(inputs, for_loss, None, output, labels, None)[0])
        probs.append(prob)
        lengths.append(counted.to(inputs))
    probs, losses, lengths = torch.stack(probs), torch.stack(losses), torch.stack(lengths)
    expected = (probs * losses).sum(0)
    entropy = -(probs * torch.where(probs > 0, probs, 1).log()).sum(0)
    length = (probs * lengths).sum(0)
    value = (expected - entropy_coeff * entropy + length_cost * length).mean()
    if acts:
        others = (expected.sum() - expected) / max(1, len(expected) - 1)
        advantage = (probs * (losses - others)).detach()
        value = value + (advantage * torch.stack(log_probs)).sum(0).mean()
        value = value - acting * (probs * torch.stack(entropies)).sum(0).mean()
    metrics = {
        "task_loss": expected,
        "sender_entropy": entropy,
        "length": length - 1,
        "support": (probs > 0).sum(0).to(inputs),
    }
    return value, {name: metric.detach() for name, metric in metrics.items()}


def game_of(sender, receiver, **options):
    loss = wrong if isinstance(getattr(receiver, "agent", None), Acting) else distance
    return SenderReceiverRnnMarg(sender, receiver.double(), loss, **options)


def assert_same_gradients(value, expected, sender, theirs, receiver, parameters=()):
    """The gradients of every parameter, of the sender, the receiver, and others that both share."""
    shared = [*receiver.parameters(), *parameters]
    ours = dict(sender.named_parameters())
    named = [(name, parameter) for name, parameter in theirs.named_parameters() if name in ours]
    assert len(named) == len(list(theirs.parameters()))
    found = torch.autograd.grad(value, [*(ours[name] for name, _ in named), *shared], allow_unused=True)
    weights = [*(parameter for _, parameter in named), *shared]
    wanted = torch.autograd.grad(expected, weights, allow_unused=True, retain_graph=True)
    names = [*(name for name, _ in named), *(f"shared {i}" for i in range(len(shared)))]
    for name, one, other in zip(names, found, wanted, strict=True):
        if other is None or not other.any():
            assert one is None or one.abs().max() < 1e-12, name
        else:
            torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-8, msg=lambda text, name=name: f"{name}: {text}")
