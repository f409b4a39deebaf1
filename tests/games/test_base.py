"""What all games share: options, Interactions and their metrics, and what is remembered of agents."""

import gc
import math
import warnings

import pytest
import torch

from egg_sparse import CommunicationMarg
from small_games import Dropping, Peeking, Sender, batch_of, fixed_sender, game_of, nll, squared_distance


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"strategy": "map"}, "strategy .*'map'"),
        ({"chunk_size": 0}, "chunk_size .* 0"),
        ({"chunk_size": 2.0}, "chunk_size .* float"),
        ({"evaluation": "argmax"}, "evaluation .*'argmax'"),
        ({"max_support": 0}, "max_support .* 0"),
        ({"max_support": True}, "max_support .* bool"),
        ({"sender_entropy_coeff": math.nan}, "sender_entropy_coeff .* nan"),
        ({"receiver_entropy_coeff": math.inf}, "receiver_entropy_coeff .* inf"),
        ({"sender_entropy_coeff": "0.1"}, "sender_entropy_coeff .* str"),
        ({"receiver_acts": "yes"}, "receiver_acts .*'yes'"),
        ({"coupled": "accept"}, "coupled .*'accept'"),
    ],
)
def test_a_wrong_option_is_refused_at_construction_and_when_it_is_set(options, error):
    """At construction, and whenever they are set."""
    with pytest.raises((TypeError, ValueError), match=error):
        CommunicationMarg(**options)
    game = CommunicationMarg()
    ((name, value),) = options.items()
    before = getattr(game, name)
    with pytest.raises((TypeError, ValueError), match=error):
        setattr(game, name, value)
    assert getattr(game, name) == before


def test_an_interaction_keeps_what_the_logging_strategy_says(core):
    batch = batch_of(5, 1)
    game = game_of("sparsemax", "auto", "index", 17, 1)
    _, everything = game(*batch)
    assert torch.equal(everything.sender_input, batch[0])
    assert everything.receiver_output.shape == (5, 3)
    assert everything.message_length.tolist() == [1.0] * 5
    kept = core.LoggingStrategy(False, False, False, False, True, False, True)
    game = game_of("sparsemax", "auto", "index", 17, 1, train_logging_strategy=kept)
    _, some = game(*batch)
    assert (some.sender_input, some.receiver_input, some.labels, some.receiver_output) == (None,) * 4
    assert some.size == 5


def test_scalars_that_a_loss_reports_are_expanded(core):
    def loss(*args):
        per_example, aux = nll(*args)
        return per_example, {"acc": aux["acc"].mean(), "constant": 3, "flag": torch.tensor([1.0])}

    batch = batch_of(5, 1)
    results = {}
    for strategy in ("vmap", "loop"):
        torch.manual_seed(0)
        game = game_of("sparsemax", strategy, "index", 17, 1)
        game.loss = loss
        _, interaction = game(*batch)
        results[strategy] = interaction.aux
        assert interaction.aux["constant"].tolist() == pytest.approx([3.0] * 5)
        assert interaction.aux["flag"].tolist() == pytest.approx([1.0] * 5)
        assert interaction.aux["acc"].shape == (5,)
        core.Interaction.from_iterable([interaction, interaction])
    torch.testing.assert_close(results["vmap"], results["loop"])
    game = game_of("sparsemax", "gather", "index", 17, 0)
    game.loss = loss
    with pytest.raises(ValueError, match=r"gather .* acc "):
        game(*batch_of(5, 0))


class TestMetrics:
    @staticmethod
    def reporting(**metrics):
        def loss(sender_input, message, receiver_input, receiver_output, labels, aux_input):
            per_example, _ = nll(sender_input, message, receiver_input, receiver_output, labels, aux_input)
            return per_example, {name: metric(receiver_output, labels) for name, metric in metrics.items()}

        return loss

    @pytest.mark.parametrize("strategy", ["auto", "vmap", "gather", "loop"])
    def test_whole_numbers_and_truths_are_numbers_in_training_and_evaluation(self, core, strategy):
        game = game_of("sparsemax", strategy, "index", 17, 0)
        game.loss = self.reporting(
            hit=lambda output, labels: output.argmax(1) == labels, rank=lambda output, labels: output.argmax(1)
        )
        for training in (True, False):
            _, interaction = game.train(training)(*batch_of(5, 0))
            assert {interaction.aux[name].dtype for name in ("hit", "rank")} == {torch.float64}
            core.ConsoleLogger(as_json=True).aggregate_print(0.0, interaction, "test", 1)

    @pytest.mark.parametrize(
        "metric",
        [
            lambda output, labels: output.mean(),
            lambda output, labels: output.mean().reshape(1),
            lambda output, labels: output.mean(0),
            lambda output, labels: output.mean(1)[None],
            lambda output, labels: output.mean().item(),
        ],
    )
    def test_gather_refuses_what_is_no_value_per_example(self, metric):
        game = game_of("softmax", "gather", "index", 17, 0)
        game.loss = self.reporting(odd=metric)
        with pytest.raises(ValueError, match=r"gather .* odd"):
            game(*batch_of(5, 0))

    @pytest.mark.parametrize("name", ["support", "sender_entropy", "receiver_calls", "task_loss"])
    def test_names_of_the_game_are_refused(self, name):
        game = game_of("sparsemax", "auto", "index", 17, 0)
        game.loss = self.reporting(**{name: lambda output, labels: labels})
        with pytest.raises(ValueError, match=name):
            game(*batch_of(5, 0))


@pytest.mark.slow
def test_what_is_known_of_a_receiver_is_forgotten_with_it(caplog):
    """Python gives the identity of an object that is gone to a new one."""
    caplog.set_level("INFO", logger="egg_sparse")
    mechanics = CommunicationMarg()
    images = batch_of(5, 0)[0].float()
    sender = fixed_sender(Sender(4, 17, 0), "softmax")
    seen = {}
    for receiver_class in (Peeking, Dropping) * 100:
        receiver = receiver_class()
        caplog.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mechanics(sender, receiver, squared_distance, images, None)
        by_vmap = caplog.messages == ["strategy auto plays this receiver with vmap"]
        assert by_vmap == (receiver_class is Dropping)
        seen.setdefault(id(receiver), set()).add(receiver_class)
        if len(seen[id(receiver)]) == 2:
            return
        del receiver
        gc.collect()
    pytest.fail("no identity was used again, so nothing was tested")
