"""Games of messages of several symbols: loss and gradients are those of all messages, one after the other."""

import pytest
import torch
from torch import nn

from small_sequences import (
    MAPPINGS,
    RECEIVERS,
    SENDERS,
    assert_same_gradients,
    batch_of,
    entmax_library,
    enumerated,
    game_of,
    rnn_senders,
    sharpened,
)

COSTS = {"sender_entropy_coeff": 0.3, "length_cost": 0.2}


def assert_is_enumerated(game, theirs, mapping, monkeypatch, parameters=(), acting=0.0, size=6):
    batch = batch_of(size)
    costs = game.sender_entropy_coeff, game.length_cost, acting
    expected, metrics = enumerated(theirs, game.receiver, game.loss, batch, mapping, monkeypatch, *costs)
    for _ in range(3):  # the first batch is checked, and later ones are played in other ways
        value, interaction = game(*batch)
        torch.testing.assert_close(value, expected)
        for name, metric in metrics.items():
            torch.testing.assert_close(interaction.aux[name], metric)
        assert_same_gradients(value, expected, game.sender, theirs, game.receiver, parameters)
    return metrics["support"]


@pytest.mark.parametrize("kind", SENDERS)
@pytest.mark.parametrize("normalizer", ["sparsemax", "softmax"])
def test_every_sender(monkeypatch, kind, normalizer):
    sender, theirs = sharpened(*SENDERS[kind](normalizer=normalizer, max_support=None))
    game = game_of(sender, RECEIVERS["gru-1"](), **COSTS)
    support = assert_is_enumerated(game, theirs, MAPPINGS[normalizer], monkeypatch)
    if normalizer == "softmax":
        assert support.tolist() == [15] * 6
    else:
        assert support.max() > 1
        assert support.min() < 15


@pytest.mark.parametrize("kind", RECEIVERS)
def test_every_receiver(monkeypatch, kind):
    sender, theirs = sharpened(*rnn_senders("gru", max_support=None))
    acting = 0.4 if kind == "acting" else 0.0
    game = game_of(sender, RECEIVERS[kind](), **COSTS, receiver_entropy_coeff=acting)
    assert assert_is_enumerated(game, theirs, MAPPINGS["sparsemax"], monkeypatch, acting=acting).max() > 3


@pytest.mark.parametrize("normalizer", ["entmax15", 1.2, 3.0, "learnable"])
def test_every_normalizer(monkeypatch, normalizer):
    parameters = ()
    if normalizer == "learnable":
        normalizer = nn.Parameter(torch.tensor(1.4, dtype=torch.float64))
        parameters = (normalizer,)
    mapping = MAPPINGS.get(normalizer) if isinstance(normalizer, str) else None
    if mapping is None:

        def mapping(x):
            return entmax_library.entmax_bisect(x / 1.5, normalizer, dim=1, n_iter=100)
    else:
        mapping = lambda x, named=mapping: named(x / 1.5)  # noqa: E731
    sender, theirs = sharpened(*rnn_senders("lstm", normalizer=normalizer, max_support=None, temperature=1.5))
    game = game_of(sender, RECEIVERS["rnn-1"](), **COSTS)
    assert_is_enumerated(game, theirs, mapping, monkeypatch, parameters)


@pytest.mark.parametrize("kind", ["gru-2", "gs", "acting", "transformer-causal", "three arguments", "four arguments"])
@pytest.mark.parametrize(
    "options",
    [
        {"strategy": "loop"},
        {"strategy": "distinct"},
        {"strategy": "auto"},
        {"strategy": "gather", "chunk_size": 2},
        {"strategy": "loop", "chunk_size": 2},
    ],
    ids=str,
)
def test_every_strategy(monkeypatch, kind, options):
    sender, theirs = sharpened(*rnn_senders(max_support=None, normalizer="entmax15"))
    acting = 0.4 if kind == "acting" else 0.0
    game = game_of(sender, RECEIVERS[kind](), **COSTS, receiver_entropy_coeff=acting, **options)
    if kind == "acting" and options["strategy"] == "distinct":
        with pytest.raises(ValueError, match="distinct cannot play a receiver that acts"):
            game(*batch_of())
        return
    assert_is_enumerated(game, theirs, MAPPINGS["entmax15"], monkeypatch, acting=acting)
