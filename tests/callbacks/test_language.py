"""The language during the training of a game of EGG's, on both hosts."""

import json

import pytest
import torch
import torch.nn.functional as F

from egg_sparse import SparsemaxWrapper, marginalize
from egg_sparse.callbacks import LanguageStatistics, interaction_of
from egg_sparse.language import Language, language_of, statistics, topographic_similarity


class Agent(torch.nn.Linear):
    def forward(self, sender_input, aux_input=None):
        return super().forward(sender_input)


class Receiver(torch.nn.Linear):
    def forward(self, message, receiver_input=None, aux_input=None):
        return super().forward(message)


def loss(sender_input, message, receiver_input, receiver_output, labels, aux_input):
    losses = F.cross_entropy(receiver_output, labels, reduction="none")
    return losses, {"acc": (receiver_output.argmax(1) == labels).float()}


INPUTS, LABELS = torch.eye(6), torch.arange(6)


def trained(core, callbacks, exact=True):
    torch.manual_seed(1)
    core.init(params=["--n_epochs=3", "--random_seed=1", "--no_cuda"])
    game = core.SymbolGameGS(core.GumbelSoftmaxWrapper(Agent(6, 4)), Receiver(4, 6), loss)
    game = marginalize(game) if exact else game
    data = [(INPUTS, LABELS)]
    made = callbacks(game)
    trainer = core.Trainer(
        game, torch.optim.Adam(game.parameters(), lr=0.1), data, validation_data=data, callbacks=made
    )
    trainer.train(n_epochs=3)
    core.close()
    return game, made


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "Gumbel-Softmax"])
def test_its_statistics_are_printed_and_are_those_of_the_sender(core, capsys, exact):
    def callbacks(game):
        speaks = LanguageStatistics(game.sender, INPUTS, LABELS, every=3, greedy=True, input_distance="hamming")
        return [speaks, core.ConsoleLogger(as_json=True, print_train_loss=False)]

    game, (speaks, _) = trained(core, callbacks, exact)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert ["language_information" in line for line in lines] == [False, False, True]
    expected = statistics(language_of(game.sender, INPUTS), LABELS)
    assert speaks.history == [{"epoch": 3, "exact": expected, "greedy": speaks.history[0]["greedy"]}]
    for name, value in expected.items():
        assert lines[-1][f"language_{name}"] == pytest.approx(value, abs=1e-6)
    assert lines[-1]["greedy_conditional_entropy"] == pytest.approx(0, abs=1e-6)


def test_training_is_the_same_with_it(core):
    plain, _ = trained(core, lambda game: [])
    watched, _ = trained(core, lambda game: [LanguageStatistics(game.sender, INPUTS)])
    for one, other in zip(plain.state_dict().values(), watched.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_it_needs_a_whole_number_of_epochs():
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        LanguageStatistics(SparsemaxWrapper(Agent(6, 4)), INPUTS, every=0)


@pytest.mark.parametrize("options", [{"every": 1.5}, {"distance": "cosine"}])
def test_wrong_arguments_are_refused_before_the_training(options):
    with pytest.raises(TypeError, match=r"every must be a whole number|options must be among"):
        LanguageStatistics(SparsemaxWrapper(Agent(6, 4)), INPUTS, **options)


def test_images_are_compared_in_place_of_attributes(core):
    sender = SparsemaxWrapper(Agent(6, 4))
    images = torch.rand(6, 2, 2)
    callback = LanguageStatistics(sender, INPUTS, LABELS, compared=images, input_distance="euclidean")
    callback.on_validation_end(0.0, core.Interaction.empty(), 1)
    language = language_of(sender, INPUTS)
    expected = topographic_similarity(language, images, "euclidean", "hamming")
    assert callback.history[0]["exact"]["topsim"] == pytest.approx(expected, abs=1e-12)


class TestInteraction:
    """A language that EGG's functions read."""

    @pytest.mark.parametrize(
        ("messages", "sent", "lengths"),
        [
            (torch.tensor([4, 2]), [4, 2], [1, 1]),
            (torch.tensor([[4, 2], [3, 0]]), [[4, 2, 0], [3, 0, 0]], [3, 2]),
            (torch.tensor([[1.0, 0.0], [0.0, 0.0]]), [[1.0, 0.0], [0.0, 0.0]], [1, 1]),
        ],
        ids=["symbols", "sequences", "bits"],
    )
    def test_messages(self, messages, sent, lengths):
        logs = interaction_of(Language.of_messages(messages), torch.eye(2), torch.tensor([7, 8]))
        assert logs.message.tolist() == sent
        assert logs.message_length.tolist() == lengths
        assert logs.labels.tolist() == [7, 8]

    def test_samples_repeat_the_inputs(self):
        logs = interaction_of(Language.of_messages(torch.tensor([4, 2])), torch.eye(2), samples=3)
        assert logs.sender_input.argmax(1).tolist() == [0, 0, 0, 1, 1, 1]

    def test_eggs_callback_reads_it(self, core, capsys):
        attributes = torch.randint(0, 3, (20, 2))
        language = Language.of_messages(attributes + torch.randint(1, 3, (20, 2)))
        logs = interaction_of(language, attributes)
        core.TopographicSimilarity("hamming", "edit").on_validation_end(0.0, logs, 1)
        printed = json.loads(capsys.readouterr().out)["topsim"]
        assert printed == pytest.approx(topographic_similarity(language, attributes), abs=1e-9)
