"""Senders of several symbols beside EGG's: the same weights, the same greedy messages, and a sentence per mistake."""

import copy
import pickle

import pytest
import torch
from torch import nn

from egg_sparse import RnnSenderSparsemax, SparseDistribution, SparsemaxWrapper, TransformerSenderSparsemax, host
from small_sequences import EMBED, FEATURES, HIDDEN, MAX_LEN, SENDERS, VOCAB, Agent, rnn_senders, sharpened

every_sender = pytest.mark.parametrize("kind", SENDERS)


def inputs(size=40):
    return torch.randn(size, FEATURES, dtype=torch.float64)


@every_sender
def test_the_same_seed_gives_the_weights_of_eggs_sender(kind):
    built = []
    for build in SENDERS[kind]():
        torch.manual_seed(5)
        built.append((build(), torch.rand(())))
    (ours, after_ours), (theirs, after_theirs) = built
    assert after_ours == after_theirs
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


@every_sender
def test_weights_move_both_ways(kind):
    ours, theirs = (build() for build in SENDERS[kind]())
    theirs.load_state_dict(ours.state_dict())
    other = SENDERS[kind]()[0]()
    other.load_state_dict(theirs.state_dict())
    for name, value in ours.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


def test_the_state_of_support_control_is_in_the_weights():
    ours, theirs = (build() for build in rnn_senders(support=4.0))
    with torch.no_grad():
        ours.hidden_to_output.weight *= 20
    x = torch.randn(8, FEATURES)
    for _ in range(5):
        ours(x)
    assert ours.temperature != 1
    more = set(ours.state_dict()) - set(theirs.state_dict())
    assert more
    assert all(name.startswith("control.") for name in more)
    again = rnn_senders(support=4.0)[0]()
    again.load_state_dict(ours.state_dict())
    assert again.temperature == ours.temperature


@every_sender
@pytest.mark.parametrize("normalizer", ["softmax", "sparsemax"])
def test_greedy_messages_are_eggs(kind, normalizer):
    """Up to the end symbol, what comes after it being 0 here; under softmax their log-probabilities and entropies."""
    ours, theirs = sharpened(*SENDERS[kind](normalizer=normalizer))
    x = inputs()
    message, log_prob, entropy = ours.eval()(x)
    with torch.no_grad():
        wanted, wanted_log_prob, wanted_entropy = theirs.eval()(x)
    lengths = (wanted[:, :-1] != 0).long().cumprod(1).sum(1) + 1
    said = torch.arange(MAX_LEN + 1) < lengths[:, None]
    assert torch.equal(message, torch.where(said, wanted, 0))
    assert (log_prob[~said] == 0).all()
    assert (entropy[~said] == 0).all()
    if normalizer == "softmax":
        torch.testing.assert_close(log_prob, torch.where(said, wanted_log_prob, 0))
        torch.testing.assert_close(entropy, torch.where(said, wanted_entropy, 0))
    assert not log_prob.requires_grad
    assert isinstance(ours.distribution(x), SparseDistribution)
    assert not ours.training


def test_a_call_in_evaluation_draws_nothing_and_controls_nothing():
    sender = rnn_senders(support=3.0, max_support=2)[0]()
    x = torch.randn(8, FEATURES)
    sender(x)
    state = {name: value.clone() for name, value in sender.state_dict().items()}
    before = torch.random.get_rng_state()
    sender.eval()(x)
    assert torch.equal(torch.random.get_rng_state(), before)
    sender.distribution(x)
    for name, value in state.items():
        torch.testing.assert_close(sender.state_dict()[name], value, rtol=0, atol=0, equal_nan=True)


@every_sender
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda sender: pickle.loads(pickle.dumps(sender))])
def test_copies(kind, copied):
    sender = SENDERS[kind](normalizer=nn.Parameter(torch.tensor(1.5)), support=2.0)[0]()
    x = torch.randn(6, FEATURES)
    sender(x)
    again = copied(sender)
    assert {id(p) for p in sender.parameters()}.isdisjoint(id(p) for p in again.parameters())
    assert repr(again) == repr(sender)
    for mode in (True, False):
        first, second = (one.train(mode).distribution(x) for one in (sender, again))
        assert torch.equal(first.messages, second.messages)
        assert torch.equal(first.probs, second.probs)


def test_further_inputs_reach_the_agent():
    class Both(nn.Module):
        def forward(self, x, aux_input=None):
            return x + aux_input["shift"]

    sender = RnnSenderSparsemax(Both(), 3, 4, 5, 2, support=None, max_support=None)
    x, shift = torch.randn(4, 5), torch.randn(4, 5)
    found = sender(x, {"shift": shift})
    wanted = RnnSenderSparsemax(nn.Identity(), 3, 4, 5, 2, support=None, max_support=None)
    wanted.load_state_dict(sender.state_dict())
    expected = wanted(x + shift)
    assert torch.equal(found.messages, expected.messages)
    torch.testing.assert_close(found.probs, expected.probs)
    torch.testing.assert_close(sender.eval()(x, {"shift": shift})[1], wanted.eval()(x + shift)[1])
    torch.testing.assert_close(sender(aux_input={"shift": shift}, x=x)[1], wanted(x + shift)[1])
    torch.testing.assert_close(sender.train()(aux_input={"shift": shift}, x=x).probs, expected.probs)


def test_wrapped_agents_and_senders():
    sender = rnn_senders("gru")[0]()
    x = torch.randn(5, FEATURES)
    expected = sender(x)
    torch.testing.assert_close(nn.DataParallel(sender)(x).probs, expected.probs)
    sender.agent = nn.DataParallel(sender.agent)
    torch.testing.assert_close(sender(x).probs, expected.probs)


def test_support_control_reaches_its_floor():
    """The floor is above the support that the scores give by themselves, and below ``max_support``."""
    sender = RnnSenderSparsemax(Agent(FEATURES, HIDDEN), 6, EMBED, HIDDEN, 4, support=7.0, max_support=12)
    with torch.no_grad():
        sender.hidden_to_output.weight *= 20
    x = torch.randn(64, FEATURES)
    first = sender(x).support_size.float().mean()
    for _ in range(200):
        last = sender(x).support_size.float().mean()
    assert first < 4
    assert 6 < last < 9


SIZES = {"vocab_size": VOCAB, "embed_dim": EMBED, "hidden_size": HIDDEN, "max_len": MAX_LEN}


@pytest.mark.parametrize("sender", [RnnSenderSparsemax, TransformerSenderSparsemax])
@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"max_len": 0}, ValueError, "max_len.*at least 1, got 0"),
        ({"max_len": "3"}, TypeError, "max_len.*integer, got str"),
        ({"max_support": 0}, ValueError, "max_support.*at least 1, got 0"),
        ({"max_support": 2.5}, TypeError, "max_support.*integer, got float"),
        ({"vocab_size": 0}, ValueError, "vocab_size.*at least 1, got 0"),
        ({"embed_dim": 0}, ValueError, "embed_dim.*at least 1, got 0"),
        ({"hidden_size": 2.5}, TypeError, "hidden_size.*integer, got float"),
        ({"num_layers": 0}, ValueError, "num_layers.*at least 1, got 0"),
        ({"num_layers": True}, TypeError, "num_layers.*integer, got bool"),
        ({"normalizer": "maxent"}, ValueError, "normalizer.*'maxent'"),
        ({"normalizer": 1}, ValueError, "normalizer.*got 1"),
        ({"temperature": 0}, ValueError, "temperature.*got 0"),
        ({"support": "some"}, TypeError, "support.*'some'"),
        ({"normalizer": "softmax", "support": 4.0}, ValueError, "support.*softmax.*4.0"),
    ],
    ids=str,
)
def test_options_that_are_none(sender, options, error, match):
    more = {} if sender is RnnSenderSparsemax else {"num_heads": 2, "num_layers": 1}
    with pytest.raises(error, match=match):
        sender(Agent(FEATURES, HIDDEN), **{**SIZES, **more, **options})


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: RnnSenderSparsemax(Agent(4, 5), **SIZES, cell="gated"), "cell.*'gated'"),
        (lambda: RnnSenderSparsemax(Agent(4, 5), **SIZES, cell=None), "cell.*None"),
        (lambda: TransformerSenderSparsemax(Agent(4, 4), **SIZES, num_layers=1, num_heads=0), "num_heads.*got 0"),
        (lambda: TransformerSenderSparsemax(Agent(4, 4), **SIZES, num_layers=1, num_heads=3), "embed_dim.*4 and 3"),
        (
            lambda: TransformerSenderSparsemax(
                Agent(4, 4), **SIZES, num_layers=1, num_heads=2, generate_style="in place"
            ),
            "generate_style.*'in place'",
        ),
    ],
)
def test_options_of_one_sender_that_are_none(build, match):
    with pytest.raises(ValueError, match=match):
        build()


class Returning(nn.Module):
    def __init__(self, returned):
        super().__init__()
        self.returned = returned

    def forward(self, x, aux_input=None):
        return self.returned(x)


AGENTS = {
    "tuple": (lambda x: (x, x), TypeError, "agent must return a tensor, got tuple"),
    "one axis": (lambda x: x[:, 0], ValueError, r"agent must return.*\(B, H\).*\(6,\)"),
    "integers": (lambda x: torch.zeros(6, HIDDEN).long(), ValueError, "agent must return.*int64"),
    "another width": (lambda x: torch.zeros(6, 7), ValueError, r"agent must return shape \(B, \d\), got \(6, 7\)"),
    "NaN": (lambda x: torch.full((6, HIDDEN), torch.nan), ValueError, "scores must be finite.*NaN"),
    "a sparse sender": (SparsemaxWrapper(nn.Linear(4, HIDDEN)), TypeError, "agent must return a tensor, got Sparse"),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", AGENTS)
def test_agents_that_are_none(kind, training):
    returned, error, match = AGENTS[kind]
    if kind == "a sparse sender" and not training:
        match = "agent must return a tensor, got tuple"
    with pytest.raises(error, match=match):
        RnnSenderSparsemax(Returning(returned), **SIZES).train(training)(torch.randn(6, 4))


def test_eggs_games_refuse_the_sender_in_training():
    sender, x = rnn_senders()[0](), torch.randn(4, FEATURES)

    def loss(*_):
        return torch.zeros(4), {}

    receivers = {
        "SenderReceiverRnnReinforce": host.core.RnnReceiverDeterministic(Agent(HIDDEN, 2), VOCAB, EMBED, HIDDEN),
        "SenderReceiverRnnGS": host.core.RnnReceiverGS(Agent(HIDDEN, 2), VOCAB, EMBED, HIDDEN),
        "SymbolGameReinforce": host.core.ReinforceDeterministicWrapper(Agent(HIDDEN, 2)),
    }
    for name, receiver in receivers.items():
        with pytest.raises(TypeError, match=r"SparseDistribution.*SenderReceiverRnnMarg"):
            getattr(host.core, name)(sender, receiver, loss)(x, None)
