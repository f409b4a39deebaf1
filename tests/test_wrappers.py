import itertools
import math

import pytest
import torch
from torch import nn

from egg_sparse import (
    SparseDistribution,
    SparseMAPBitVectorWrapper,
    SparsemaxWrapper,
    SymbolGameMarg,
    TopKSparsemaxWrapper,
    host,
)


class Agent(nn.Linear):
    def forward(self, x, aux_input=None):
        return super().forward(x)


def dense(distribution):
    probs = torch.zeros(distribution.probs.shape[1], distribution.vocab_size, dtype=distribution.probs.dtype)
    return probs.scatter_add(1, distribution.messages.t(), distribution.probs.t())


@pytest.mark.parametrize("normalizer", ["sparsemax", "entmax15", "softmax", 1.3, 2, nn.Parameter(torch.tensor(1.7))])
def test_log_probabilities_and_scores_give_the_same_distribution(normalizer):
    class LogAgent(Agent):
        def forward(self, x, aux_input=None):
            return super().forward(x).log_softmax(1)

    agent, x = Agent(5, 12), torch.randn(8, 5)
    log_agent = LogAgent(5, 12)
    log_agent.load_state_dict(agent.state_dict())
    first, second = SparsemaxWrapper(agent, normalizer)(x, None), SparsemaxWrapper(log_agent, normalizer)(x, None)
    torch.testing.assert_close(dense(first), dense(second), atol=1e-5, rtol=0)


def test_numbers_mean_alpha():
    agent, x = Agent(5, 12), torch.randn(8, 5)
    for name, alpha in (("sparsemax", 2), ("entmax15", 1.5)):
        torch.testing.assert_close(
            dense(SparsemaxWrapper(agent, name)(x)), dense(SparsemaxWrapper(agent, float(alpha))(x))
        )


def test_one_hot_messages_are_the_rows_of_the_symbols():
    wrapper = SparsemaxWrapper(Agent(5, 12), message_format="one_hot")
    x = torch.randn(8, 5)
    vectors, symbols = wrapper(x), SparsemaxWrapper(wrapper.agent)(x)
    assert torch.equal(vectors.messages.argmax(-1), symbols.messages)
    assert torch.equal(vectors.messages.sum(-1), torch.ones_like(vectors.probs))
    torch.testing.assert_close(vectors.mean, dense(symbols))


def test_in_evaluation_a_call_returns_what_eggs_wrappers_return(core):
    agent, x = Agent(5, 12), torch.randn(8, 5)
    symbols = SparsemaxWrapper(agent).eval()
    message, log_prob, entropy = symbols(x, None)
    theirs = core.ReinforceWrapper(agent).eval()(x, None)
    assert torch.equal(message, theirs[0])
    distribution = symbols.distribution(x, None)
    torch.testing.assert_close(log_prob, distribution.log_prob(message))
    torch.testing.assert_close(entropy, distribution.entropy())
    assert [part.shape for part in theirs] == [message.shape, log_prob.shape, entropy.shape]
    one_hot = SparsemaxWrapper(agent, message_format="one_hot").eval()
    assert torch.equal(one_hot(x, None), core.GumbelSoftmaxWrapper(agent).eval()(x, None))
    bits = SparseMAPBitVectorWrapper(Agent(5, 6)).eval()
    assert torch.equal(bits(x), bits.distribution(x).mode)
    assert isinstance(symbols.train()(x), SparseDistribution)


def test_games_get_the_distribution_of_a_sender_in_a_module_of_the_users(core):
    class Outer(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x, aux_input=None):
            return self.inner(2 * x)

    wrapper, receiver, x = SparsemaxWrapper(Agent(5, 12), support=None), nn.Embedding(12, 5), torch.randn(8, 5)

    def loss(sender_input, message, receiver_input, receiver_output, labels, aux_input):
        return (receiver_output - sender_input).pow(2).sum(1), {}

    game = SymbolGameMarg(Outer(wrapper), lambda message, *_: receiver(message), loss, evaluation="expected")
    for mode in (True, False):
        game.train(mode)
        distribution = wrapper.distribution(2 * x)
        wanted = distribution.expectation((receiver(distribution.messages) - x).pow(2).sum(-1)).mean()
        torch.testing.assert_close(game(x, None)[0], wanted)
    assert isinstance(game.sender(x), tuple)


def test_eggs_games_name_the_game_that_is_needed(core):
    class Reader(nn.Linear):
        def forward(self, message, receiver_input=None, aux_input=None):
            return super().forward(message)

    def loss(sender_input, message, receiver_input, receiver_output, labels, aux_input):
        return (receiver_output - sender_input).pow(2).sum(1), {}

    x = torch.randn(8, 5)
    ids, one_hot = SparsemaxWrapper(Agent(5, 12)), SparsemaxWrapper(Agent(5, 12), message_format="one_hot")
    for game in (
        core.SymbolGameReinforce(ids, core.ReinforceDeterministicWrapper(Reader(12, 5)), loss),
        core.SymbolGameGS(one_hot, Reader(12, 5), loss),
        core.SymbolGameGS(one_hot, core.SymbolReceiverWrapper(Reader(12, 5), 12, 12), loss),
        core.SymbolGameGS(one_hot, lambda message, *_: message.argmax(-1), loss),
        core.SymbolGameGS(one_hot, lambda message, *_: message[:, 0], loss),
    ):
        with pytest.raises((TypeError, AttributeError), match=r"SymbolGameMarg"):
            game(x, None)
    assert core.SymbolGameGS(one_hot, Reader(12, 5), loss).eval()(x, None)[1].message.shape == (8, 12)


@pytest.mark.parametrize("name", ["ReinforceWrapper", "GumbelSoftmaxWrapper"])
def test_messages_that_are_drawn_already_are_refused(core, name):
    sender = SparsemaxWrapper(getattr(core, name)(Agent(5, 12)))
    with pytest.raises(TypeError, match=rf"{name}.*SparsemaxWrapper the agent"):
        SymbolGameMarg(sender, nn.Embedding(12, 5), lambda *_: None)(torch.randn(8, 5), None)


def test_agents_of_several_symbols_are_refused_by_name(egg):
    def loss(*_):
        raise AssertionError("the loss is not reached")

    sender = egg.RnnSenderReinforce(Agent(5, 6), 12, 4, 6, 3)
    for game in (
        SymbolGameMarg(sender, nn.Embedding(12, 5), loss),
        SymbolGameMarg(SparsemaxWrapper(sender), nn.Embedding(12, 5), loss),
        SymbolGameMarg(SparsemaxWrapper(Agent(5, 12)), egg.RnnReceiverGS(Agent(6, 5), 12, 4, 6, "rnn"), loss),
        SymbolGameMarg(SparsemaxWrapper(Agent(5, 12)), egg.RnnReceiverDeterministic(Agent(6, 5), 12, 4, 6), loss),
        SymbolGameMarg(
            SparsemaxWrapper(Agent(5, 12)), egg.ReinforceWrapper(egg.RnnReceiverGS(Agent(6, 5), 12, 4, 6, "rnn")), loss
        ),
    ):
        with pytest.raises(TypeError, match=r"Rnn\w+ .*several symbols"):
            game(torch.randn(8, 5), None)


@pytest.mark.parametrize("wrap", [SparseMAPBitVectorWrapper, TopKSparsemaxWrapper])
def test_every_bit_counts_as_a_symbol(core, wrap):
    """So that EGG's dump_interactions, which cuts messages at their length, keeps them apart."""
    bits = (torch.arange(64)[:, None] >> torch.arange(6) & 1).float()

    def loss(sender_input, message, receiver_input, receiver_output, labels, aux_input):
        return (receiver_output - sender_input).pow(2).sum(1), {}

    game = SymbolGameMarg(wrap(lambda x, aux_input=None: 4 * x - 2), lambda message, *_: message, loss)
    dumped = core.dump_interactions(game, [(bits, torch.zeros(64))], gs=False, variable_length=True)
    assert len(torch.unique(dumped.message, dim=0)) == 64
    assert game(bits, None)[1].message_length.tolist() == [6.0] * 64


def test_temperature_divides_scores_and_is_annealed_by_egg(core):
    agent, x = Agent(5, 12), torch.randn(8, 5)
    wrapper = SparsemaxWrapper(agent, temperature=4.0)
    with torch.no_grad():
        hot = dense(wrapper(x))
        agent.weight /= 4
        agent.bias /= 4
    torch.testing.assert_close(hot, dense(SparsemaxWrapper(agent, support=None)(x)))
    core.TemperatureUpdater(wrapper, decay=0.5, minimum=1.5).on_epoch_end(0.0, None, 1)
    assert wrapper.temperature == 2.0
    assert "temperature=2" in repr(wrapper)


def test_learned_alpha_trains_and_stays_above_1():
    alpha = nn.Parameter(torch.tensor(1.5))
    wrapper = SparsemaxWrapper(Agent(5, 12), alpha, support=None)
    assert any(parameter is alpha for parameter in wrapper.parameters())
    x = torch.randn(8, 5)
    wrapper(x).entropy().sum().backward()
    assert alpha.grad.abs() > 0
    with torch.no_grad():
        alpha.fill_(0.2)
    alpha.grad = None
    distribution = wrapper(x)
    torch.testing.assert_close(
        dense(distribution), dense(SparsemaxWrapper(wrapper.agent, 1.01, support=None)(x)), atol=1e-4, rtol=0
    )
    distribution.entropy().sum().backward()
    assert torch.isfinite(alpha.grad)
    assert alpha.grad != 0


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"normalizer": "sofmax"}, "normalizer.*'sofmax'"),
        ({"normalizer": 1.0}, r"normalizer.*1\.0"),
        ({"normalizer": float("inf")}, "normalizer.*inf"),
        ({"normalizer": True}, "normalizer.*bool"),
        ({"normalizer": nn.Parameter(torch.tensor([1.5, 2.0]))}, "one number above 1"),
        ({"normalizer": nn.Parameter(torch.tensor(0.5))}, "one number above 1"),
        ({"message_format": "onehot"}, "message_format.*'onehot'"),
        ({"temperature": 0}, "temperature.* 0"),
        ({"temperature": float("nan")}, "temperature.*nan"),
    ],
)
def test_wrong_options_are_refused(options, error):
    with pytest.raises((TypeError, ValueError), match=error):
        SparsemaxWrapper(Agent(5, 12), **options)


def test_what_agents_should_not_return_is_refused():
    class Sampling(nn.Module):
        def forward(self, x, aux_input=None):
            return x, x

    with pytest.raises(TypeError, match=r"scores.*tuple"):
        SparsemaxWrapper(Sampling())(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"scores.*3 of 6"):
        SparsemaxWrapper(nn.Identity())(torch.tensor([[float("nan")] * 3, [0.0] * 3]))
    with pytest.raises(ValueError, match=r"scores.*\(2, 3, 4\)"):
        SparsemaxWrapper(nn.Identity())(torch.zeros(2, 3, 4))
    for options in ({}, {"temperature": 2.0}):
        with pytest.raises(TypeError, match=r"scores.*int64"):
            SparsemaxWrapper(nn.Identity(), **options)(torch.zeros(2, 3, dtype=torch.long))
    wrapper = SparsemaxWrapper(nn.Identity(), support=None)
    with pytest.raises(ValueError, match=r"temperature .*-1"):
        wrapper.temperature = -1


def test_state_dict_is_the_agents_own():
    """A checkpoint of the same agent under EGG's wrapper can be loaded."""
    agent = Agent(5, 12)
    assert set(SparsemaxWrapper(agent, support=None).state_dict()) == set(
        host.core.ReinforceWrapper(agent).state_dict()
    )


@pytest.mark.parametrize(
    "wrap",
    [
        lambda agent: TopKSparsemaxWrapper(agent, k=6, support=None),
        lambda agent: SparseMAPBitVectorWrapper(agent, support=None),
        lambda agent: SparseMAPBitVectorWrapper(agent, decomposition="threshold", support=None),
        lambda agent: SparseMAPBitVectorWrapper(agent, budget=2, support=None),
    ],
)
@pytest.mark.parametrize("strategy", ["auto", "vmap", "gather", "loop"])
def test_bit_vector_games(core, wrap, strategy):
    """Equal to the sum over all bit-vectors, with EGG's receivers' signature and under its annealing callback."""

    class Decoder(Agent):
        def forward(self, message, receiver_input=None, aux_input=None):
            return super().forward(message).tanh()

    def loss(sender_input, message, receiver_input, receiver_output, labels, aux_input):
        return (receiver_output - sender_input).pow(2).sum(1), {}

    wrapper = wrap(Agent(3, 4))
    game = SymbolGameMarg(wrapper, Decoder(4, 3), loss, sender_entropy_coeff=0.1, strategy=strategy).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    optimized, interaction = game(x, None)
    distribution = wrapper(x, None)
    total = 0
    for bits in itertools.product([0.0, 1.0], repeat=4):
        message = torch.tensor(bits, dtype=torch.float64).expand(5, 4)
        prob = distribution.log_prob(message).exp()
        total = total + prob * loss(x, message, None, game.receiver(message), None, None)[0]
    torch.testing.assert_close(optimized, (total - 0.1 * distribution.entropy()).mean())
    assert torch.equal(interaction.message, distribution.mode)
    optimized.backward()
    assert wrapper.agent.weight.grad.abs().sum() > 0

    wrapper.temperature = 4.0
    core.TemperatureUpdater(wrapper, decay=0.5).on_epoch_end(0.0, None, 1)
    assert wrapper.temperature == 2.0
    assert "temperature=2" in repr(wrapper)


def test_wrong_options_of_bit_vector_wrappers_are_refused():
    for options, error in (({"k": 0}, "k .* 0"), ({"temperature": 0}, "temperature.* 0")):
        with pytest.raises(ValueError, match=error):
            TopKSparsemaxWrapper(Agent(3, 4), **options)
    for options, error in (
        ({"budget": -1}, "budget.*-1"),
        ({"decomposition": "threshold", "budget": 1}, "threshold.*budget"),
        ({"temperature": math.inf}, "temperature.*inf"),
    ):
        with pytest.raises(ValueError, match=error):
            SparseMAPBitVectorWrapper(Agent(3, 4), **options)
