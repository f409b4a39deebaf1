"""The variance of gradient estimates: formulas for tiny games, and trainings that do not notice it."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from egg_sparse import SparsemaxWrapper, SymbolGameMarg, host
from egg_sparse.callbacks import GradientVariance, MetricsWriter
from egg_sparse.callbacks.gradients import moments
from egg_sparse.estimators import RelaxedWrapper, SymbolGameRelaxed, SymbolSampler
from symbol_games import Score, nll


def test_moments_are_those_of_torch():
    draws = torch.randn(7, 3, 4, dtype=torch.float64) + 1e6
    mean, variance = moments(iter(draws))
    torch.testing.assert_close(mean, draws.mean(0))
    torch.testing.assert_close(variance, draws.var(0), rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="two, got 1"):
        moments(draws[:1])


class Read(torch.nn.Module):
    """Reads symbols or rows, with a state that every call changes."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.embed = torch.nn.Linear(5, 6)
        self.norm = torch.nn.BatchNorm1d(6)
        self.drop = torch.nn.Dropout(dropout)
        self.calls = 0

    def forward(self, message, receiver_input=None, aux_input=None):
        self.calls += 1
        rows = message if message.is_floating_point() else F.one_hot(message, 5).float()
        return self.norm(self.drop(self.embed(rows))).log_softmax(1)


class Table(torch.nn.Module):
    """A receiver without a state: log-probabilities by the symbol."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(5, 6))

    def forward(self, message, receiver_input=None, aux_input=None):
        return self.table[message].log_softmax(1)


def reinforce(core, receiver, baseline="MeanBaseline"):
    return core.SymbolGameReinforce(
        core.ReinforceWrapper(Score(6, 5)),
        core.ReinforceDeterministicWrapper(receiver),
        nll,
        sender_entropy_coeff=0.0,
        receiver_entropy_coeff=0.0,
        baseline_type=getattr(core.baselines, baseline),
    )


GAMES = {
    "reinforce": lambda core: reinforce(core, Read(0.3)),
    "exact": lambda core: SymbolGameMarg(SparsemaxWrapper(Score(6, 5)), Table(), nll),
    "exact with dropout": lambda core: SymbolGameMarg(SparsemaxWrapper(Score(6, 5)), Read(0.3), nll, strategy="loop"),
    "relaxed": lambda core: SymbolGameRelaxed(RelaxedWrapper(SymbolSampler(Score(6, 5), 1.0), 1.0), Read(), nll),
}


def train(core, monkeypatch, make_game, callbacks, n_epochs=3, lr=0.1, batch=None):
    monkeypatch.setattr(host, "_resolved", {"core": core})
    core.init(params=["--random_seed=1", f"--lr={lr}", f"--n_epochs={n_epochs}", "--no_cuda"])
    game = make_game(core)
    optimizer = core.build_optimizer(game.parameters())
    batches = [batch or (torch.eye(6), torch.arange(6))] * 5
    writer = MetricsWriter()
    trainer = core.Trainer(game, optimizer, batches, validation_data=batches[:1], callbacks=[*callbacks(game), writer])
    trainer.train(n_epochs)
    return game, optimizer, writer.history


@pytest.mark.filterwarnings("ignore:.*BatchNorm")
@pytest.mark.parametrize("name", GAMES)
def test_the_training_does_not_notice(name, core, monkeypatch):
    ends = []
    for callbacks in (lambda game: [], lambda game: [GradientVariance(game.sender, repetitions=3)]):
        game, optimizer, history = train(core, monkeypatch, GAMES[name], callbacks)
        others = [
            {key: value for key, value in record.items() if "gradient" not in key and record["mode"] == "train"}
            for record in history
        ]
        state = [*game.state_dict().values(), *(value for s in optimizer.state.values() for value in s.values())]
        calls = getattr(game.receiver, "calls", None) or getattr(getattr(game.receiver, "agent", None), "calls", None)
        baselines = [vars(each) for each in vars(game).get("baselines", {}).values()]
        generators = [torch.get_rng_state(), *torch.tensor([random.random(), np.random.rand()])]
        gradients = [parameter.grad for parameter in game.parameters()]
        assert not game._forward_pre_hooks, "its hook is gone"
        ends.append((others, calls, baselines, [*state, *generators], gradients))
    (plain, *numbers, tensors, gradients), (measured, *same, tensors_too, gradients_too) = ends
    assert plain == measured
    assert numbers == same
    assert all(torch.equal(a, b) for a, b in zip(tensors, tensors_too, strict=True))
    assert [each is None for each in gradients] == [each is None for each in gradients_too]
    reported = [record["gradient_variance"] for record in history if record["mode"] == "train"]
    assert len(reported) == 3
    assert (max(reported) == 0) == (name == "exact")
    assert "gradient_variance" not in history[1], "that of the validation"


R = 200


def test_reinforce_has_the_variance_of_the_formula(core, monkeypatch):
    """All messages of one example: the trace is the mean squared norm less the squared norm of the mean."""
    callback = []

    def callbacks(game):
        callback.append(GradientVariance(game.sender, repetitions=R))
        return callback

    batch = (torch.randn(1, 6), torch.tensor([2]))
    game, _, history = train(
        core, monkeypatch, lambda core: reinforce(core, Table(), "NoBaseline"), callbacks, 1, 1e-9, batch
    )
    sender, receiver = game.sender.agent, game.receiver.agent
    logits = sender(batch[0])[0]
    losses = -receiver(torch.arange(5))[:, 2].detach()
    gradients = []
    for message in range(5):
        parts = torch.autograd.grad(losses[message] * logits[message], list(sender.parameters()), retain_graph=True)
        gradients.append(torch.cat([part.flatten() for part in parts]))
    probs, gradients = logits.exp().detach(), torch.stack(gradients)
    mean = probs @ gradients
    variance = float(probs @ gradients.square().sum(1) - mean.square().sum())
    assert history[0]["gradient_variance"] == pytest.approx(variance, rel=0.15)
    estimated_norm = float(mean.square().sum()) + variance / R
    assert history[0]["relative_gradient_variance"] == pytest.approx(variance / estimated_norm, rel=0.5)
    by_parameter = callback[0].by_parameter
    assert by_parameter.keys() == dict(game.sender.named_parameters()).keys()
    assert sum(by_parameter.values()) == pytest.approx(history[0]["gradient_variance"])


def test_every_second_epoch_and_a_batch_of_ones_own(monkeypatch):
    def callbacks(game):
        return [GradientVariance(game.sender, every=2, repetitions=2, batch=(torch.eye(6)[:2], torch.arange(2)))]

    _, _, history = train(host.core, monkeypatch, GAMES["reinforce"], callbacks, 4)
    measured = [record["epoch"] for record in history if "gradient_variance" in record]
    assert measured == [2, 4]


def test_what_is_refused(monkeypatch):
    game = GAMES["exact"](host.core)
    for name in ("every", "repetitions"):
        with pytest.raises(ValueError, match=f"{name} .* got 0"):
            GradientVariance(game.sender, **{name: 0})
    with pytest.raises(ValueError, match="sender must be a part of the game"):
        train(host.core, monkeypatch, GAMES["exact"], lambda _: [GradientVariance(game.sender)])


def test_it_needs_whole_numbers():
    with pytest.raises(TypeError, match="every must be a whole number"):
        GradientVariance(SparsemaxWrapper(torch.nn.Linear(2, 3)), every=1.5)
