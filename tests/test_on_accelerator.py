"""The package on an emulated GPU: results and gradients are those of the CPU, and how often a step waits for it."""

import copy
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from egg_sparse import (
    CommunicationMarg,
    RnnSenderSparsemax,
    SenderReceiverRnnMarg,
    SparseMAPBitVectorWrapper,
    SparsemaxWrapper,
    SymbolGameMarg,
    TopKSparsemaxWrapper,
    TransformerSenderSparsemax,
    host,
    mappings,
    marginalize,
)
from egg_sparse.estimators import (
    BitVectorSampler,
    NeuralBaseline,
    RelaxedWrapper,
    SymbolGameRelaxed,
    SymbolGameScoreFunction,
    SymbolSampler,
)
from egg_sparse.games.calls import vmap_can_be_recomputed
from egg_sparse.mappings.resampling import sum_and_sample


def waits(counted):
    """Where the program waits for the device, less what torch.multinomial does by itself before torch 2.5."""
    return [place for place in counted.synchronizations if not place.endswith(" multinomial")]


# ---------------------------------------------------------------------------------------------------------------------
# Mappings

LEARNED = {"one": lambda x: 1.2 + x[0, :1].sigmoid(), "one per example": lambda x: 1.2 + x[:, :1].sigmoid()}
DISTRIBUTIONS = {
    "softmax": mappings.softmax,
    "sparsemax": mappings.sparsemax,
    "entmax15": mappings.entmax15,
    "entmax, number": lambda x: mappings.entmax(x, 1.3),
    "entmax, tensor": lambda x: mappings.entmax(x, LEARNED["one"](x)),
    "entmax, tensors": lambda x: mappings.entmax(x, LEARNED["one per example"](x)),
    "top-k sparsemax": lambda x: mappings.topk_sparsemax(x, 10),
    "systematic": mappings.sparsemap_bit_vectors,
    "threshold": lambda x: mappings.sparsemap_bit_vectors(x, None, "threshold"),
    "budget": lambda x: mappings.sparsemap_bit_vectors(x, 5),
    "no bit": lambda x: mappings.sparsemap_bit_vectors(x, 0),
}
ACTIVE_SETS = {
    "active set": lambda x: mappings.sparsemap_bit_vectors(x, None, "active_set"),
    "active set, budget": lambda x: mappings.sparsemap_bit_vectors(x, 5, "active_set"),
    "chain": lambda x: mappings.sparsemap_chain(x, x[:, 1:] - 0.5),
}
VALUES = {
    "marginals": mappings.sparsemap_marginals,
    "marginals, budget": lambda x: mappings.sparsemap_marginals(x, 5),
    "best bit-vectors": lambda x: mappings.topk_bit_vectors(x, 10),
}


def solved(name, x):
    """What a mapping finds, the probabilities or values last."""
    if name in VALUES:
        found = VALUES[name](x)
        return found if isinstance(found, tuple) else (found,)
    distribution = {**DISTRIBUTIONS, **ACTIVE_SETS}[name](x)
    return distribution.messages, distribution.probs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", [*DISTRIBUTIONS, *ACTIVE_SETS, *VALUES])
def test_mappings(accelerator, name, dtype):
    x = 0.8 * torch.randn(16, 12, dtype=dtype)
    on_cpu, on_device = x.clone().requires_grad_(), accelerator.to(x).requires_grad_()
    expected = solved(name, on_cpu)
    weights = torch.randn_like(expected[-1])
    there = accelerator.to(weights)
    solved(name, on_device)  # which copies what does not depend on scores
    with accelerator.count() as forward:
        found = solved(name, on_device)
    with accelerator.count() as backward:
        (found[-1] * there).sum().backward()
    (expected[-1] * weights).sum().backward()
    tolerance = {"atol": 1e-5, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 1e-9, "rtol": 1e-8}
    for one, other in zip((*found, on_device.grad), (*expected, on_cpu.grad), strict=True):
        torch.testing.assert_close(accelerator.host(one), other.detach(), **tolerance)
    if name not in ACTIVE_SETS:
        assert len(waits(forward)) == 1, waits(forward)  # for the largest support, and for whether scores are finite
    assert backward.synchronizations == []
    assert forward.copies_to_device == backward.copies_to_device == []


@pytest.mark.parametrize("name", ["softmax", "sparsemax", "entmax15", "entmax, number", "entmax, tensors"])
@pytest.mark.parametrize("scale", [0.01, 2.0])
def test_mappings_of_a_large_vocabulary(accelerator, name, scale):
    """The supports are most of the vocabulary, or a small part, which is selected first."""
    x = scale * torch.randn(6, 700, dtype=torch.float64)
    x[0] *= 4
    on_cpu, on_device = x.clone().requires_grad_(), accelerator.to(x).requires_grad_()
    expected = solved(name, on_cpu)
    with accelerator.count() as forward:
        found = solved(name, on_device)
    with accelerator.count() as backward:
        found[-1].square().sum().backward()
    expected[-1].square().sum().backward()
    for one, other in zip((*found, on_device.grad), (*expected, on_cpu.grad), strict=True):
        torch.testing.assert_close(accelerator.host(one), other.detach(), atol=1e-9, rtol=1e-8)
    assert len(waits(forward)) == (1 if name == "softmax" else 2), waits(forward)
    assert backward.synchronizations == forward.copies_to_device == backward.copies_to_device == []
    x[3, 600] = float("nan")
    with pytest.raises(ValueError, match=r"scores.*1 of 4200"):
        solved(name, accelerator.to(x))


WAITS_PER_ITERATION, WAITS_AROUND = 5, 12


def test_active_sets_wait_in_every_iteration(accelerator):
    x = accelerator.to(0.8 * torch.randn(16, 12, dtype=torch.float64))
    calls = []

    def exactly_three(scores):
        calls.append(scores)
        return torch.zeros_like(scores).scatter(1, scores.topk(3, dim=1).indices, 1.0)

    with accelerator.count() as counted:
        mappings.sparsemap_active_set(x, exactly_three)
    assert len(calls) > 5
    assert len(calls) <= len(waits(counted)) <= WAITS_PER_ITERATION * len(calls) + WAITS_AROUND, counted


@pytest.mark.parametrize("name", ["sparsemax", "entmax, number", "top-k sparsemax", "systematic", "active set"])
def test_mappings_under_autocast(accelerator, name):
    x = torch.randn(16, 12).to("cuda")
    with torch.autocast("cuda", dtype=torch.float16):
        _, probs = solved(name, x @ torch.eye(12, device="cuda"))
    assert probs.dtype == torch.float32
    torch.testing.assert_close(
        accelerator.host(probs), solved(name, accelerator.host(x).half().float())[1], atol=1e-5, rtol=1e-4
    )


def test_scores_that_are_not_finite(accelerator):
    x = torch.randn(4, 6)
    x[2, 3] = float("nan")
    for name in (*DISTRIBUTIONS, *ACTIVE_SETS, *VALUES):
        if "tensor" not in name:
            with pytest.raises(ValueError, match=r"scores|transitions"):
                solved(name, x.to("cuda"))


METHODS = {
    "entropy": lambda d: d.entropy(),
    "log_prob": lambda d: d.log_prob(d.messages),
    "sample": lambda d: d.sample((5,)),
    "expectation": lambda d: d.expectation(d.probs[..., None].expand(-1, -1, 3)),
    "mean": lambda d: d.mean,
    "mode": lambda d: d.mode,
    "support_size": lambda d: d.support_size,
    "enumerate_support": lambda d: d.enumerate_support(),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("mapping", ["sparsemax", "systematic"])
def test_distributions(accelerator, mapping, name):
    x = torch.randn(8, 6, dtype=torch.float64)
    on_cpu, on_device = DISTRIBUTIONS[mapping](x), DISTRIBUTIONS[mapping](accelerator.to(x))
    torch.manual_seed(4)
    expected = METHODS[name](on_cpu)
    torch.manual_seed(4)
    with accelerator.count() as counted:
        found = METHODS[name](on_device)
    torch.testing.assert_close(accelerator.host(found), expected, equal_nan=True)
    assert counted.synchronizations == counted.copies_to_device == []


def test_sum_and_sample(accelerator):
    x = torch.randn(8, 6, dtype=torch.float64)
    torch.manual_seed(4)
    terms, log_prob = sum_and_sample(mappings.softmax(x), 2)
    on_device = mappings.softmax(accelerator.to(x))
    torch.manual_seed(4)
    with accelerator.count() as counted:
        found, found_log_prob = sum_and_sample(on_device, 2)
    for one, other in ((found.messages, terms.messages), (found.probs, terms.probs), (found_log_prob, log_prob)):
        torch.testing.assert_close(accelerator.host(one), other)
    assert waits(counted) == counted.copies_to_device == []


# ---------------------------------------------------------------------------------------------------------------------
# Games


class Sender(nn.Module):
    def __init__(self, n_messages=9):
        super().__init__()
        self.score = nn.Linear(4, n_messages)

    def forward(self, images, aux_input=None):
        return self.score(images)


class Receiver(nn.Module):
    """Log-probabilities of candidates; ``norm`` is a layer that vmap cannot map, or not."""

    def __init__(self, one_hot=False, n_messages=9, norm=None, dropout=0.0):
        super().__init__()
        self.read = nn.Linear(n_messages, 6) if one_hot else nn.Embedding(n_messages, 6)
        self.see = nn.Sequential(nn.Linear(4, 6), nn.Dropout(dropout))
        self.norm = norm or nn.Identity()

    def forward(self, message, images, aux_input=None):
        return torch.einsum("bge,be->bg", self.see(images), self.norm(self.read(message))).log_softmax(1)


class Acting(host.core.ReinforceWrapper):
    """Draws a candidate, without the wrapper's checks of its distribution, which vmap cannot map."""

    def __init__(self):
        super().__init__(Receiver())

    def forward(self, message, images, aux_input=None):
        choice = torch.distributions.Categorical(logits=self.agent(message, images), validate_args=False)
        action = choice.sample()
        return action, choice.log_prob(action), choice.entropy()


def nll(sender_input, message, receiver_input, receiver_output, labels, aux_input):
    loss = F.nll_loss(receiver_output, labels, reduction="none")
    return loss, {"acc": (receiver_output.argmax(1) == labels).to(loss), "scalar": loss.detach().mean()}


def nll_alone(*args):
    return nll(*args)[0], {}


def guess(sender_input, message, receiver_input, receiver_output, labels, aux_input):
    return (receiver_output != labels).double(), {}


def marg(strategy, normalizer="sparsemax", message_format="index", receiver=None, loss=None, **options):
    receiver = receiver or Receiver(message_format == "one_hot")
    if loss is None:
        loss = nll_alone if strategy == "gather" else nll
    sender = SparsemaxWrapper(Sender(), normalizer, message_format)
    return SymbolGameMarg(sender, receiver, loss, 0.1, strategy=strategy, **options)


def population():
    senders, receivers = [SparsemaxWrapper(Sender()) for _ in range(2)], [Receiver() for _ in range(3)]
    sampler = host.core.UniformAgentSampler(senders, receivers, [nll])
    return host.core.PopulationGame(CommunicationMarg(0.1), sampler)


def bits(wrapper, **options):
    return SymbolGameMarg(wrapper, Receiver(True), nll_alone, 0.1, strategy="gather", **options)


def acting(strategy):
    return marg(strategy, receiver=Acting(), loss=guess, receiver_entropy_coeff=0.1)


def score_function(kind, baseline, **options):
    sampler = (SymbolSampler if kind == "symbols" else BitVectorSampler)(Sender())
    return SymbolGameScoreFunction(
        sampler, Receiver(kind == "bits"), nll, baseline, sender_entropy_coeff=0.1, **options
    )


def relaxed(kind, **options):
    sampler = (SymbolSampler if kind == "symbols" else BitVectorSampler)(Sender())
    return SymbolGameRelaxed(RelaxedWrapper(sampler, **options), Receiver(True), nll, 0.1)


STRATEGIES = ("auto", "vmap", "gather", "loop")
GAMES = {
    **{f"{s}, {f}": lambda s=s, f=f: marg(s, message_format=f) for s in STRATEGIES for f in ("index", "one_hot")},
    **{f"{s}, chunks": lambda s=s: marg(s, "softmax", chunk_size=2) for s in STRATEGIES},
    **{
        f"{s}, chunks of dropout": lambda s=s: marg(s, receiver=Receiver(dropout=0.3), chunk_size=2) for s in STRATEGIES
    },
    **{f"{s}, max_support": lambda s=s: marg(s, "softmax", max_support=2) for s in STRATEGIES},
    **{f"{s}, acting": lambda s=s: acting(s) for s in STRATEGIES},
    **{f"{s}, expected": lambda s=s: marg(s, evaluation="expected") for s in STRATEGIES},
    "learned alpha": lambda: marg("vmap", nn.Parameter(torch.tensor(1.6))),
    "population": population,
    "SparseMAP": lambda: bits(SparseMAPBitVectorWrapper(Sender())),
    "SparseMAP, budget": lambda: bits(SparseMAPBitVectorWrapper(Sender(), budget=3), max_support=2),
    "top-k sparsemax": lambda: bits(TopKSparsemaxWrapper(Sender(), k=5)),
    **{
        f"score function, {kind}, {baseline}": lambda kind=kind, baseline=baseline: score_function(kind, baseline)
        for kind in ("symbols", "bits")
        for baseline in ("none", "running_mean", "sample")
    },
    "score function, symbols, leave one out": lambda: score_function("symbols", "leave_one_out", n_samples=3),
    "score function, bits, leave one out": lambda: score_function("bits", "leave_one_out", n_samples=3),
    "score function, symbols, network": lambda: score_function("symbols", NeuralBaseline(4, 8)),
    "score function, bits, network": lambda: score_function("bits", NeuralBaseline(4, 8)),
    "score function, sampled": lambda: score_function("symbols", "none", evaluation="sampled"),
    **{
        f"relaxed, {kind}, {hard}": lambda kind=kind, hard=hard: relaxed(kind, straight_through=hard)
        for kind in ("symbols", "bits")
        for hard in (False, True)
    },
}
# A step waits for the largest support, and "gather" for the number of terms too.
GATHERED = [name for name in GAMES if name.startswith(("gather", "SparseMAP", "top-k"))]
WAITS_OF_A_STEP = dict.fromkeys(GAMES, 1) | dict.fromkeys(GATHERED, 2)
WAITS_OF_EVALUATION = dict.fromkeys(GAMES, 1) | {"gather, expected": 2}


def batches(n):
    return [(torch.randn(6, 4).double(), torch.arange(6) % 3, torch.randn(6, 3, 4).double()) for _ in range(n)]


def seeded(seed):
    torch.manual_seed(seed)
    np.random.seed(seed)


def step(game, optimizer, batch, seed):
    seeded(seed)
    optimizer.zero_grad()
    loss, interaction = game(*batch)
    loss.backward()
    optimizer.step()
    return loss.detach(), vars(interaction)


QUICK = ("auto, index", "gather, one_hot", "vmap, max_support", "SparseMAP", "score function, symbols, sample")
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in GAMES if name not in QUICK]


@pytest.mark.parametrize("name", [*QUICK, *SLOW])
def test_games(accelerator, name):
    if name in ("vmap, chunks", "vmap, chunks of dropout") and not vmap_can_be_recomputed():
        pytest.skip("needs torch 2.6")
    seeded(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if name.startswith("auto, chunks") else "error", RuntimeWarning)
        warnings.filterwarnings("ignore", "the loss reports scalar as one number per batch")
        on_cpu = GAMES[name]().double()
        on_device = copy.deepcopy(on_cpu)
        optimizers = [torch.optim.Adam(game.parameters()) for game in (on_cpu, on_device)]
        accelerator.to(on_device)
        for seed, batch in enumerate(batches(3)):
            there = accelerator.to(batch)
            with accelerator.count() as counted:
                found = step(on_device, optimizers[1], there, seed)
            expected = step(on_cpu, optimizers[0], batch, seed)
            torch.testing.assert_close(accelerator.host(found), expected)
            for one, other in zip(on_device.parameters(), on_cpu.parameters(), strict=True):
                assert (one.grad is None) == (other.grad is None)
                if one.grad is not None:
                    torch.testing.assert_close(accelerator.host(one.grad), other.grad)
        for one, other in zip(on_device.parameters(), on_cpu.parameters(), strict=True):
            torch.testing.assert_close(accelerator.host(one), other.detach())
        assert len(waits(counted)) == WAITS_OF_A_STEP[name], waits(counted)
        assert counted.copies_to_device == []

        on_cpu.eval(), on_device.eval()
        with torch.no_grad():
            on_device(*there)  # the first batch of a mode may be asked whether its losses are coupled
            seeded(7)
            with accelerator.count() as counted:
                loss, interaction = on_device(*there)
            seeded(7)
            expected = on_cpu(*batch)
        torch.testing.assert_close(accelerator.host(loss), expected[0])
        torch.testing.assert_close(accelerator.host(vars(interaction)), vars(expected[1]))
        assert len(waits(counted)) == WAITS_OF_EVALUATION[name], waits(counted)
        assert counted.copies_to_device == []


def test_auto_falls_back_on_the_device_too(accelerator):
    game = accelerator.to(marg("auto", receiver=Receiver(norm=nn.BatchNorm1d(6))).double())
    optimizer = torch.optim.Adam(game.parameters())
    first, second = accelerator.to(batches(2))
    with pytest.warns(RuntimeWarning, match="loop"):
        step(game, optimizer, first, 0)
    with accelerator.count() as counted:
        step(game, optimizer, second, 1)
    assert len(waits(counted)) == 1, waits(counted)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_games_under_autocast(accelerator, strategy):
    game = accelerator.to(marg(strategy).float())
    sender_input, labels, receiver_input = batches(1)[0]
    there = accelerator.to((sender_input.float(), labels, receiver_input.float()))
    with torch.autocast("cuda", dtype=torch.float16):
        loss, _ = game(*there)
    loss.backward()
    assert all(accelerator.host(parameter.grad).isfinite().all() for parameter in game.parameters())
    torch.testing.assert_close(
        accelerator.host(loss.detach()), accelerator.host(game(*there)[0].detach()), atol=0.02, rtol=0.02
    )


def test_an_input_that_was_not_moved(accelerator):
    game = accelerator.to(marg("vmap").double())
    sender_input, labels, receiver_input = batches(1)[0]
    with pytest.raises(RuntimeError, match="same device"):
        game(sender_input, *accelerator.to((labels, receiver_input)))
    with pytest.raises(RuntimeError, match="same device"):
        game(*accelerator.to((sender_input, labels)), receiver_input)


# ---------------------------------------------------------------------------------------------------------------------
# Messages of several symbols

LENGTH = 3


class Agent(nn.Linear):
    def forward(self, inputs, *others):
        return super().forward(inputs)


def error_of(sender_input, message, receiver_input, receiver_output, labels, aux_input):
    error = (receiver_output - sender_input[:, :2]).square().sum(1)
    return error, {"error": error}


class PositionReceiver(nn.Module):
    """A receiver that reads symbols by their position, without a wait for the device."""

    def __init__(self):
        super().__init__()
        self.read = nn.Embedding(5, 2)
        self.weigh = nn.Parameter(torch.randn(LENGTH + 1, 1))

    def forward(self, message, receiver_input=None, aux_input=None):
        return (self.read(message) * self.weigh).sum(1)


class ActingReceiver(PositionReceiver):
    """Draws an action, without checks of its distribution, which wait for the device."""

    def forward(self, message, receiver_input=None, aux_input=None):
        choice = torch.distributions.Categorical(logits=super().forward(message), validate_args=False)
        action = choice.sample()
        return action, choice.log_prob(action), choice.entropy()


def sequence_sender(cell="gru", **options):
    return RnnSenderSparsemax(Agent(4, 6), 5, 3, 6, LENGTH, cell=cell, **options)


SEQUENCE_GAMES = {
    "exact": lambda: (sequence_sender(max_support=None, support=None), PositionReceiver(), error_of),
    "bounded": lambda: (sequence_sender(normalizer="softmax", max_support=4), PositionReceiver(), error_of),
    "controlled": lambda: (sequence_sender(max_support=None, support=6.0), PositionReceiver(), error_of),
    "1.5-entmax of an LSTM": lambda: (
        sequence_sender("lstm", normalizer="entmax15", max_support=None, support=None),
        PositionReceiver(),
        error_of,
    ),
    "learned alpha": lambda: (
        sequence_sender(normalizer=nn.Parameter(torch.tensor(1.6)), max_support=None, support=None),
        PositionReceiver(),
        error_of,
    ),
    "a Transformer": lambda: (
        TransformerSenderSparsemax(Agent(4, 4), 5, 4, LENGTH, 1, 2, 6, max_support=None, support=None),
        PositionReceiver(),
        error_of,
    ),
    "EGG's GS receiver": lambda: (
        sequence_sender(normalizer="softmax", max_support=4),
        host.core.RnnReceiverGS(Agent(6, 2), 5, 3, 6),
        error_of,
    ),
    "an acting receiver": lambda: (
        sequence_sender(normalizer="softmax", max_support=4),
        ActingReceiver(),
        guess,
    ),
}


QUICK_SEQUENCES = (("bounded", "gather"), ("controlled", "loop"), ("an acting receiver", "gather"))


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        pytest.param(name, strategy, marks=() if (name, strategy) in QUICK_SEQUENCES else pytest.mark.slow)
        for name in SEQUENCE_GAMES
        for strategy in ("gather", "loop")
    ],
)
def test_games_of_sequences(accelerator, name, strategy):
    seeded(1)
    acts = {"receiver_acts": True, "receiver_entropy_coeff": 0.1} if "acting" in name else {}
    game = SenderReceiverRnnMarg(*SEQUENCE_GAMES[name](), 0.1, length_cost=0.05, strategy=strategy, **acts).double()
    on_device = accelerator.to(copy.deepcopy(game))
    optimizers = [torch.optim.Adam(part.parameters()) for part in (game, on_device)]
    for seed, (inputs, labels, _) in enumerate(batches(3)):
        there = accelerator.to((inputs, labels))
        with accelerator.count() as counted:
            found = step(on_device, optimizers[1], there, seed)
        expected = step(game, optimizers[0], (inputs, labels), seed)
        torch.testing.assert_close(accelerator.host(found), expected)
        for one, other in zip(on_device.parameters(), game.parameters(), strict=True):
            if other.grad is not None:
                torch.testing.assert_close(accelerator.host(one.grad), other.grad)
    # one per step of the message and one at its end; another for the number of pairs that gather plays
    assert len(waits(counted)) <= LENGTH + 1 + (strategy == "gather"), waits(counted)
    assert counted.copies_to_device == []

    game.eval(), on_device.eval()
    with torch.no_grad():
        seeded(7)
        found = on_device(*there)
        seeded(7)
        expected = game(inputs, labels)
    torch.testing.assert_close(accelerator.host(found[0]), expected[0])
    torch.testing.assert_close(accelerator.host(vars(found[1])), vars(expected[1]))


@pytest.mark.parametrize("max_support", [None, 6])
@pytest.mark.parametrize("normalizer", ["sparsemax", "softmax"])
def test_distributions_over_sequences(accelerator, normalizer, max_support):
    seeded(1)
    sender = sequence_sender(normalizer=normalizer, max_support=max_support, support=None).double()
    on_device = accelerator.to(copy.deepcopy(sender))
    x = torch.randn(7, 4).double()
    there = accelerator.to(x)
    with accelerator.count() as counted:
        found = on_device(there)
    assert len(waits(counted)) <= LENGTH + 1, waits(counted)
    assert counted.copies_to_device == []
    weights = accelerator.host(found.weights)
    torch.testing.assert_close(weights.sum(0).detach(), torch.ones(7).double())
    with accelerator.count() as counted:
        on_device.eval()(there)
    assert len(waits(counted)) == 1, waits(counted)
    if max_support is None:
        expected = sender.train()(x)
        for name in ("messages", "lengths", "probs", "log_probs", "is_exact"):
            torch.testing.assert_close(accelerator.host(getattr(found, name)), getattr(expected, name))
    else:
        assert len(found.probs) == max_support
        assert accelerator.host(found.support_size).tolist() == [max_support] * 7
    with accelerator.count() as counted:
        found.log_prob(found.messages), found.entropy(), found.expectation(found.probs), found.support_size, found.mode
    assert counted.synchronizations == counted.copies_to_device == []


def test_sequences_of_scores_that_are_not_finite(accelerator):
    sender = sequence_sender()
    with torch.no_grad():
        sender.hidden_to_output.bias[2] = float("nan")
    on_device = accelerator.to(sender)
    with pytest.raises(ValueError, match="scores must be finite"):
        on_device(torch.randn(3, 4).to("cuda"))


def test_sequences_under_autocast(accelerator):
    class Decoder:
        """The emulated device does not cast the inputs of recurrent cells, as a GPU does."""

        def begin(self, inputs):
            return inputs

        def step(self, state, symbols):
            return torch.mm(state, state[:5].t()), (state if symbols is None else state.roll(1, 1))

    x = accelerator.to(torch.randn(6, 4))
    with torch.autocast("cuda", dtype=torch.float16):
        d = mappings.sequence_distribution(Decoder(), x, max_len=3, normalizer="softmax", max_support=4)
    weights = accelerator.host(d.weights)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.sum(0), torch.ones(6))


def converted_game(several):
    """A game of EGG's."""
    if several:
        sender = host.core.RnnSenderReinforce(Agent(4, 6), 5, 3, 6, LENGTH)
        return host.core.SenderReceiverRnnReinforce(sender, ActingReceiver(), guess)
    return host.core.SymbolGameReinforce(host.core.ReinforceWrapper(Sender()), Acting(), guess)


@pytest.mark.parametrize("several", [True, False])
def test_a_game_that_is_converted_on_the_device(accelerator, several):
    """Its support control is there, too."""
    game = converted_game(several).double()
    converted = marginalize(accelerator.to(game), receiver_acts=True)
    batch = accelerator.to(batches(1)[0])
    for _ in range(3):
        loss, interaction = converted(*batch)
        loss.backward()
    assert accelerator.host(loss.detach()).isfinite()
    assert accelerator.host(interaction.aux["support"]).min() >= 1
