"""Support control: the rule written out by hand, its state, and what it keeps alive."""

import copy
import math
import warnings

import pytest
import torch
from torch import nn

from egg_sparse import (
    CommunicationMarg,
    SparseDistribution,
    SparseMAPBitVectorWrapper,
    SparsemaxWrapper,
    SymbolGameMarg,
    TopKSparsemaxWrapper,
    host,
)
from egg_sparse.callbacks import SupportSchedule
from egg_sparse.support import Constant, FollowLoss, Geometric, OpenEnded, SupportControl


class Agent(nn.Linear):
    def forward(self, x, aux_input=None):
        return super().forward(x)


class Receiver(nn.Module):
    def __init__(self, vocab_size, size):
        super().__init__()
        self.read = nn.Embedding(vocab_size, size)

    def forward(self, message, receiver_input=None, aux_input=None):
        return self.read(message)


def squared_distance(sender_input, message, receiver_input, receiver_output, labels, aux_input):
    return (receiver_output - sender_input).pow(2).sum(1), {}


def of_sizes(*sizes):
    """A distribution with these supports, uniform."""
    rows = torch.arange(max(sizes))[:, None].expand(-1, len(sizes))
    probs = (rows < torch.tensor(sizes)) / torch.tensor(sizes)
    return SparseDistribution(rows, probs)


def test_the_rule():
    control, temperature, pressure = SupportControl(Geometric(over=10, start=8, end=2), first=1.0), 1.0, 0.0
    for step, sizes in enumerate([(1, 2), (1, 1), (9, 9), (3, 1), (1, 1), (9, 9), (9, 9)] * 3):
        floor = 8 * (2 / 8) ** min(1, step / 10)
        shortfall = math.log(floor / (sum(sizes) / 2))
        temperature = max(1.0, temperature * math.exp(min(max(0.3 * shortfall, -0.04), 0.1)))
        pressure = min(max(pressure + 0.05 * shortfall, 0), 5)
        control.observe(of_sizes(*sizes), largest=100)
        assert float(control.temperature) == pytest.approx(temperature, rel=1e-5)
        assert float(control.pressure) == pytest.approx(pressure, abs=1e-5)
    assert int(control.step) == 21


def test_a_floor_asks_for_at_most_nine_tenths_of_all_messages():
    control = SupportControl(Constant(16), first=1.0)
    control.observe(of_sizes(9, 9), largest=10)
    assert float(control.temperature) == pytest.approx(1.0)
    control.observe(of_sizes(1), largest=1)
    assert float(control.temperature) == 1.0


def test_the_floor_follows_the_loss():
    """It falls faster while the loss stays than while the loss falls, and by the clock alone without a loss."""
    falls = {}
    for name in ("falling", "stalled", "unknown"):
        control, noise = SupportControl(FollowLoss(start=16), first=1.0), torch.Generator().manual_seed(0)
        for step in range(200):
            control.observe(of_sizes(16), largest=100)
            if name != "unknown":
                mean = 5 - step / 50 if name == "falling" else 5.0
                control.follow(mean + 0.1 * torch.randn(8, generator=noise))
        falls[name] = float(control.fall)
    assert falls["falling"] == pytest.approx(-200 * 0.3 / 100, abs=0.3)
    assert falls["unknown"] == pytest.approx(-200 / 100)
    assert falls["stalled"] < falls["falling"] - 0.5


def test_losses_that_are_not_finite_are_left_out():
    control = SupportControl(FollowLoss(), first=1.0)
    control.follow(torch.ones(4))
    before = control.averages.clone()
    control.follow(torch.tensor([math.nan, 1.0]))
    assert torch.equal(control.averages, before)


@pytest.mark.parametrize("floor", [Geometric(over=20, start=8, end=1.5), FollowLoss(start=9, pace=5)])
def test_numbers_of_the_cpu_and_tensors_of_a_device_agree(accelerator, floor):
    on_cpu, on_device = (SupportControl(floor, first=0.7) for _ in range(2))
    on_device.to(accelerator.device)
    for step in range(30):
        distribution = of_sizes(*torch.randint(1, 10, (6,)).tolist())
        losses, spread = 3 / (1 + step) + torch.rand(6), torch.rand(6)
        if step == 7:
            losses[2] = math.inf
        distribution.messages[0, ::2] += 1
        there = distribution.to(accelerator.device)
        on_cpu.observe(distribution, 100)
        on_cpu.follow(losses)
        with accelerator.count() as counted:
            on_device.observe(there, 100)
            on_device.follow(losses.to(accelerator.device))
        assert counted.synchronizations == []
        for of_actions in (False, True):
            found = on_device.entropy_coefficient(spread.to(accelerator.device), of_actions)
            assert accelerator.host(found) == pytest.approx(on_cpu.entropy_coefficient(spread, of_actions), rel=1e-4)
    for name, value in on_device.state_dict().items():
        torch.testing.assert_close(
            accelerator.host(value), on_cpu.state_dict()[name], rtol=1e-4, atol=1e-5, equal_nan=True
        )


WRAPPERS = {
    "symbols": lambda agent, **options: SparsemaxWrapper(agent, **options),
    "one-hot": lambda agent, **options: SparsemaxWrapper(agent, message_format="one_hot", **options),
    "entmax15": lambda agent, **options: SparsemaxWrapper(agent, "entmax15", **options),
    "top-k": lambda agent, **options: TopKSparsemaxWrapper(agent, k=20, **options),
    "sparsemap": lambda agent, **options: SparseMAPBitVectorWrapper(agent, **options),
    "budget": lambda agent, **options: SparseMAPBitVectorWrapper(agent, budget=12, **options),
}
LARGEST = {"top-k": 20, "sparsemap": 41, "budget": 41}


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("name", WRAPPERS)
def test_begins_with_many_messages_whatever_the_scale(name, scale):
    agent = Agent(5, 40)
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.mul_(scale)
    wrapper = WRAPPERS[name](agent)
    wrapper(torch.randn(64, 5))
    size = wrapper.eval().distribution(torch.randn(64, 5)).support_size.float().mean()
    wanted = min(64, 0.9 * LARGEST.get(name, 40))
    assert 0.6 * wanted < size < 1.3 * wanted


@pytest.mark.slow
@pytest.mark.parametrize("name", WRAPPERS)
def test_keeps_a_constant_floor(name):
    """Against an agent whose scores grow and grow."""
    agent = Agent(5, 40)
    wrapper, x = WRAPPERS[name](agent, support=4), torch.randn(64, 5)
    for _ in range(300):
        wrapper(x)
        with torch.no_grad():
            agent.weight.mul_(1.02)
    sizes = [wrapper(x).support_size.float().mean() for _ in range(20)]
    assert sum(sizes) / 20 > 3


def test_what_support_and_temperature_mean_together():
    agent = Agent(5, 40)
    assert isinstance(SparsemaxWrapper(agent).support, FollowLoss)
    assert SparsemaxWrapper(agent, temperature=2).support is None
    assert SparsemaxWrapper(agent, support=None).temperature == 1
    assert SparsemaxWrapper(agent, support=None).control is None
    assert SparsemaxWrapper(agent, "softmax").support is None, "all symbols are in the support of softmax"
    both = SparsemaxWrapper(agent, temperature=2, support=3)
    assert (both.temperature, both.support) == (2, Constant(3.0))
    assert SparsemaxWrapper(agent, support=OpenEnded()).support == OpenEnded()
    wrapper = SparsemaxWrapper(agent)
    wrapper.support = None
    assert wrapper.control is None
    wrapper.support = lambda step: 3.0
    assert wrapper.support(0) == 3.0


@pytest.mark.parametrize(
    ("support", "error"), [(0.5, r"0\.5"), ("always", "always"), (True, "True"), (math.nan, "nan"), (math.inf, "inf")]
)
def test_refuses(support, error):
    with pytest.raises((TypeError, ValueError), match=f"support .*{error}"):
        SparsemaxWrapper(Agent(5, 40), support=support)
    with pytest.raises(ValueError, match=r"support .*softmax"):
        SparsemaxWrapper(Agent(5, 40), "softmax", support=3)
    wrapper = SparsemaxWrapper(Agent(5, 40), support=lambda step: 0.0)
    with pytest.raises(ValueError, match=r"floor .*0\.0"):
        wrapper(torch.randn(2, 5))


def test_evaluation_and_no_grad_leave_it_alone():
    wrapper, x = SparsemaxWrapper(Agent(5, 40)), torch.randn(8, 5)
    wrapper(x)
    state = copy.deepcopy(wrapper.state_dict())
    with torch.no_grad():
        wrapper(x)
    wrapper.eval()(x)
    assert all(
        torch.equal(value, state[name]) for name, value in wrapper.state_dict().items() if "averages" not in name
    )


def trained(game, steps, optimizer=None):
    optimizer = optimizer or torch.optim.Adam(game.parameters(), lr=0.01)
    for step in range(steps):
        optimizer.zero_grad()
        game(torch.randn(16, 5, generator=torch.Generator().manual_seed(step)), None)[0].backward()
        optimizer.step()
    return game


def test_state_dict_and_deepcopy_go_on_alike():
    torch.manual_seed(0)
    game = trained(SymbolGameMarg(SparsemaxWrapper(Agent(5, 40)), Receiver(40, 5), squared_distance), 20)
    again = SymbolGameMarg(SparsemaxWrapper(Agent(5, 40)), Receiver(40, 5), squared_distance)
    again.load_state_dict(game.state_dict())
    copied = copy.deepcopy(game)
    for each in (game, again, copied):
        trained(each, 20, torch.optim.SGD(each.parameters(), lr=0.01))
    for other in (again, copied):
        for name, value in game.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name
    assert int(game.sender.control.step) == 40


def test_half_precision_keeps_the_state_in_float32():
    wrapper = SparsemaxWrapper(Agent(5, 40)).to(torch.bfloat16)
    wrapper(torch.randn(8, 5).to(torch.bfloat16))
    assert wrapper.control.temperature.dtype == torch.float32


def test_a_sender_that_is_not_drawn_does_not_move(core):
    senders = [SparsemaxWrapper(Agent(5, 40)) for _ in range(2)]
    receiver = Receiver(40, 5)
    game = core.PopulationGame(
        CommunicationMarg(), core.UniformAgentSampler(senders, [receiver], [squared_distance], seed=0)
    )
    for _ in range(20):
        game(torch.randn(8, 5), None)[0].backward()
    steps = [int(sender.control.step) for sender in senders]
    assert sum(steps) == 20
    assert min(steps) > 0


def test_pressure_enters_the_gradient_and_not_the_loss():
    torch.manual_seed(0)
    game = SymbolGameMarg(SparsemaxWrapper(Agent(5, 12), support=4, temperature=1.0), Receiver(12, 5), squared_distance)
    x = torch.randn(16, 5)
    results = []
    for pressure in (0.0, 1.5):
        game.sender.control.temperature.fill_(1)
        game.sender.control.pressure.fill_(pressure)
        plain = copy.deepcopy(game)
        plain.sender.support = None
        distribution = plain.sender(x)
        losses = (plain.receiver(distribution.messages) - x).pow(2).sum(-1)
        expected = distribution.expectation(losses)
        spread = distribution.expectation((losses - expected).square()).sqrt().mean().detach()
        game.sender.control.pressure.fill_(pressure)
        loss, _ = game(x, None)
        used = max(float(game.sender.control.pressure), 1 - 1 / 4)  # the step's own support has changed it already
        wanted = expected.mean() - used * spread * distribution.entropy().mean()
        torch.testing.assert_close(loss, expected.mean())
        found = torch.autograd.grad(loss, game.sender.agent.weight)[0]
        torch.testing.assert_close(found, torch.autograd.grad(wanted, plain.sender.agent.weight)[0])
        results.append(used)
    assert results[0] != results[1]


@pytest.mark.parametrize("support", [1, 1.2, 4, FollowLoss(start=9), Geometric(over=10, start=5)])
def test_pressure_lasts_as_long_as_the_floor_asks_for_several_messages(support):
    """Also where the support is above the floor; not where losses are those of random actions."""
    agent, x = Agent(5, 12), torch.randn(16, 5)
    wrapper = SparsemaxWrapper(agent, support=support, temperature=1.0)
    with torch.no_grad():
        agent.bias.zero_()
        agent.weight *= 1e-3  # all messages nearly alike
    distribution = wrapper(x)
    assert (distribution.support_size == 12).all()
    floor = {FollowLoss: 9, Geometric: 5}.get(type(support), support)
    spread = torch.tensor([1.0, 3.0])
    wanted = 2 * (1 - 1 / floor) * min(1, 4 * floor / 12)
    assert float(wrapper.control.entropy_coefficient(spread)) == pytest.approx(wanted, abs=1e-6)
    assert float(wrapper.control.entropy_coefficient(spread, of_actions=True)) == 0


@pytest.mark.parametrize("messages", ["symbols", "one-hot", "sparsemap"])
def test_nothing_presses_or_falls_before_messages_differ(messages):
    """The share that differs is counted by hand. A single example counts as different: nothing can be said of it."""
    agent, x = Agent(5, 40), torch.randn(16, 5)
    wrapper = WRAPPERS[messages](agent, temperature=1.0, support=FollowLoss(start=9))
    spread = torch.ones(1)
    with torch.no_grad():
        weight = agent.weight.clone()
        agent.weight.zero_()
        agent.bias.copy_(torch.linspace(-0.01, 0.01, 40))
    for _ in range(3):
        wrapper(x)  # the same message for all
    control = wrapper.control
    assert float(control.variety) == 0
    assert float(control.entropy_coefficient(spread)) == pytest.approx(float(control.pressure))
    assert float(control.fall) == pytest.approx(-3 * 0.05 / 100)
    with torch.no_grad():
        agent.weight.copy_(weight)
    modes = wrapper(x).mode.reshape(16, -1)
    differ = sum(bool((modes[i] != modes[0]).any()) for i in range(16)) / 16
    assert float(control.variety) == pytest.approx(differ / 20)
    assert float(control.fall) == pytest.approx(-(3 * 0.05 + 0.05 + 0.95 * min(1, differ / 20 / 0.3)) / 100)
    alone = WRAPPERS[messages](agent, temperature=1.0, support=4)
    alone(x[:1])
    assert float(alone.control.variety) == 1


@pytest.mark.slow
def test_learning_goes_on_where_a_fixed_temperature_stops():
    """32 objects and 50 symbols, the game of the README."""

    def nll(sender_input, message, receiver_input, receiver_output, labels, aux_input):
        scores = receiver_output.log_softmax(1)
        return -scores.gather(1, labels[:, None])[:, 0], {"acc": (scores.argmax(1) == labels).float()}

    understood = {}
    for support in ("auto", None):
        understood[support] = 0.0
        for seed in range(3):
            torch.manual_seed(seed)
            game = SymbolGameMarg(SparsemaxWrapper(Agent(32, 50), support=support), Receiver(50, 32), nll)
            optimizer = torch.optim.Adam(game.parameters(), lr=0.05)
            for _ in range(500):
                optimizer.zero_grad()
                game(torch.eye(32), torch.arange(32))[0].backward()
                optimizer.step()
            understood[support] += float(game.eval()(torch.eye(32), torch.arange(32))[1].aux["acc"].mean()) / 3
    assert understood["auto"] > understood[None] + 0.05
    assert understood["auto"] > 0.9


def test_eggs_temperature_updater_is_named_once(core):
    wrapper = SparsemaxWrapper(Agent(5, 40))
    updater = core.TemperatureUpdater(wrapper, decay=0.5, minimum=0.1)
    with pytest.warns(RuntimeWarning, match="TemperatureUpdater"):
        updater.on_epoch_end(0.0, None, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        updater.on_epoch_end(0.0, None, 2)


def test_a_collapse_is_named_once():
    torch.manual_seed(0)
    agent = Agent(5, 12)
    with torch.no_grad():
        agent.weight.mul_(1000)
    game = SymbolGameMarg(SparsemaxWrapper(agent, support=None), Receiver(12, 5), squared_distance)
    with pytest.warns(RuntimeWarning, match="support"):
        trained(game, 250)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(game, 250)


def test_a_schedule_over_two_fifths_of_the_training():
    host.core.init(params=["--n_epochs=4", "--random_seed=1", "--lr=0.01"])
    game = SymbolGameMarg(SparsemaxWrapper(Agent(5, 40)), Receiver(40, 5), squared_distance)
    data = [(torch.randn(16, 5), torch.zeros(16))] * 10
    host.core.Trainer(
        game, host.core.build_optimizer(game.parameters()), data, callbacks=[SupportSchedule(game.sender, 9, 2)]
    ).train(4)
    found = game.sender.support
    assert (found.over, found.start, found.end) == (pytest.approx(16), 9, 2)
    assert int(game.sender.control.step) == 40
    senders = [SparsemaxWrapper(Agent(5, 40)) for _ in range(4)]
    sampler = host.core.UniformAgentSampler(senders, [Receiver(40, 5)], [squared_distance])
    population = host.core.PopulationGame(CommunicationMarg(), sampler)
    callbacks = [SupportSchedule(sender) for sender in senders]
    host.core.Trainer(population, torch.optim.Adam(population.parameters()), data, callbacks=callbacks).train(1)
    assert [sender.support.over for sender in senders] == [pytest.approx(4)] * 4
    with pytest.raises(TypeError, match=r"sender .*Linear"):
        SupportSchedule(nn.Linear(2, 3))
    with pytest.raises(ValueError, match=r"over .*length"):
        host.core.Trainer(
            game,
            host.core.build_optimizer(game.parameters()),
            (batch for batch in data),
            callbacks=[SupportSchedule(game.sender)],
        ).train(4)
