"""Uneven supports in groups of examples: the result of one padded batch, at the cost of the supports."""

import copy
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from egg_sparse import SymbolGameMarg
from egg_sparse.games.groups import groups_of
from small_games import fixed_sender, gradients, squared_distance

VOCABULARY = 300


class Uneven(nn.Module):
    """Gives the first examples large supports, the others small ones."""

    def __init__(self, sizes):
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(VOCABULARY, dtype=torch.float64))
        self.sizes = torch.tensor(sizes)

    def forward(self, images, aux_input=None):
        order = torch.arange(VOCABULARY)
        return self.scores - 1e-6 * order - 10.0 * (order >= self.sizes[:, None])


class Reading(nn.Module):
    def __init__(self):
        super().__init__()
        self.read = nn.Embedding(VOCABULARY, 6).double()
        self.pairs = []

    def forward(self, message, images, aux_input=None):
        self.pairs.append(len(message))
        return torch.bmm(images, self.read(message).unsqueeze(-1))[:, :, 0]


def game_of(sizes, loss=squared_distance, **options):
    torch.manual_seed(0)
    return SymbolGameMarg(fixed_sender(Uneven(sizes)), Reading(), loss, max_support=None, **options)


SIZES = [200, 3, 90, *[1] * 37]


def played(game, *batch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        game(*batch)
    del game.receiver.pairs[:]
    loss, interaction = game(*batch)
    return loss, interaction, list(game.receiver.pairs)


@pytest.mark.parametrize("chunk_size", [None, 30])
def test_groups_give_the_result_of_plain_calls(chunk_size):
    images = torch.randn(len(SIZES), 5, 6, dtype=torch.float64)
    game = game_of(SIZES, chunk_size=chunk_size)
    loss, interaction, sizes = played(game, images, None, images)
    assert sum(sizes) >= len(SIZES)
    assert len(set(interaction.aux["receiver_calls"].tolist())) > 1, "the batch was played in groups"
    reference = copy.deepcopy(game)
    reference.strategy, reference.chunk_size = "loop", None
    expected, wanted = reference(images, None, images)
    torch.testing.assert_close(loss, expected)
    for found, gradient in zip(gradients(loss, game), gradients(expected, reference), strict=True):
        torch.testing.assert_close(found, gradient)
    torch.testing.assert_close(interaction.receiver_output, wanted.receiver_output)
    torch.testing.assert_close(interaction.aux["task_loss"], wanted.aux["task_loss"])
    calls = interaction.aux["receiver_calls"]
    assert (calls >= torch.tensor(SIZES)).all()
    assert calls.sum() <= 2 * sum(SIZES)


def test_examples_on_another_axis_are_played_as_one_batch():
    class OnAxis1(Reading):
        def forward(self, message, images, aux_input=None):
            return super().forward(message, images.transpose(0, 1))

    def loss(sender_input, message, receiver_input, receiver_output, labels, aux_input):
        return receiver_output.square().sum(1), {}

    game = game_of(SIZES, loss)
    game.receiver = OnAxis1()
    images = torch.randn(5, len(SIZES), 6, dtype=torch.float64)
    _, interaction, _ = played(game, images, None, images)
    assert set(interaction.aux["receiver_calls"].tolist()) == {200.0}


def test_inputs_that_can_no_longer_be_divided_are_played_as_one_batch():
    images = torch.randn(len(SIZES), 5, 6, dtype=torch.float64)
    game = game_of(SIZES)
    _, interaction, _ = played(game, images, None, images)
    assert len(set(interaction.aux["receiver_calls"].tolist())) > 1, "the batch was played in groups"
    loss, interaction = game(images, torch.zeros(3), images)
    assert set(interaction.aux["receiver_calls"].tolist()) == {200.0}
    game.strategy = "loop"
    torch.testing.assert_close(loss, game(images, None, images)[0])


def test_a_loss_that_depends_on_the_batch_is_played_as_one_batch():
    def centered(sender_input, message, receiver_input, receiver_output, labels, aux_input):
        return (receiver_output.sum(1) - sender_input.sum((1, 2)).mean()).pow(2), {}

    images = torch.randn(len(SIZES), 5, 6, dtype=torch.float64)
    game = game_of(SIZES, centered)
    loss, interaction, _ = played(game, images, None, images)
    assert set(interaction.aux["receiver_calls"].tolist()) == {200.0}
    game.strategy = "loop"
    torch.testing.assert_close(loss, game(images, None, images)[0])


@pytest.mark.parametrize("as_input", [list, np.array, lambda weights: [[weight] for weight in weights]])
def test_an_input_of_other_entries_per_example_is_not_divided(as_input):
    def weighted(sender_input, message, receiver_input, receiver_output, labels, aux_input):
        weights = torch.tensor([float(np.sum(aux_input["weights"][i])) for i in range(len(receiver_output))])
        return receiver_output.square().sum(1) * weights, {}

    images = torch.randn(len(SIZES), 5, 6, dtype=torch.float64)
    weights = torch.arange(len(SIZES))
    losses = []
    for strategy in ("loop", "auto"):
        game = game_of(SIZES, weighted, strategy=strategy)
        game(images, None, images, {"weights": as_input([1] * len(SIZES))})
        losses.append(game(images, None, images, {"weights": as_input(weights.tolist())})[0])
    torch.testing.assert_close(*losses)


def test_an_average_over_the_batch_is_one_over_the_whole_batch():
    def averaging(sender_input, message, receiver_input, receiver_output, labels, aux_input):
        return receiver_output.square().sum(1), {"accuracy": (receiver_output.argmax(1) == labels).double().mean()}

    images, labels = torch.randn(len(SIZES), 5, 6, dtype=torch.float64), torch.arange(len(SIZES)) % 5
    averages = []
    for strategy in ("loop", "auto"):
        game = game_of(SIZES, averaging, strategy=strategy)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            game(images, labels - 100, images)
            averages.append(game(images, labels, images)[1].aux["accuracy"])
    torch.testing.assert_close(*averages)


@given(st.lists(st.integers(1, 600), min_size=1, max_size=300))
@settings(max_examples=100, deadline=None)
def test_groups_hold_every_example_once_within_their_size(sizes):
    groups = groups_of(sizes)
    assert sorted(position for _, members in groups for position in members) == list(range(len(sizes)))
    for size, members in groups:
        assert size == max(sizes[position] for position in members)
    # each group that is merged into a larger one saves a call, worth 512 pairs
    padded = sum(size * len(members) for size, members in groups)
    assert padded + 512 * len(groups) <= 2 * sum(sizes) + 512 * 11


def test_even_supports_are_one_group():
    assert groups_of([7] * 50) == [(7, list(range(50)))]
