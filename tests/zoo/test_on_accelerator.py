"""Every game of the zoo on an emulated GPU: trained and tested as on the CPU, and how often a step waits for it."""

import copy
import functools

import pytest
import torch

from egg_sparse import host
from egg_sparse.zoo import faults, training
from egg_sparse.zoo.bit_vector_vae import data as bit_vector_data
from egg_sparse.zoo.bit_vector_vae import train as bit_vector_vae
from egg_sparse.zoo.semi_supervised_vae import data as semi_supervised_data
from egg_sparse.zoo.semi_supervised_vae import train as semi_supervised_vae
from egg_sparse.zoo.signal_game import data as signal_data
from egg_sparse.zoo.signal_game import train as signal_game

SIGNAL_DATA = functools.cache(lambda: signal_data.load("digits", None, "data", False))
BIT_VECTOR_DATA = functools.cache(lambda: bit_vector_data.load("digits", ""))
SEMI_SUPERVISED_DATA = functools.cache(lambda: semi_supervised_data.load("digits", "", None))


def options(module, params, *defaults):
    return module.parse_options(["--batch_size=8", "--random_seed=1", *defaults, *params])


def build_signal_game(params):
    opts = options(signal_game, params, "--vocab_size=12", "--game_size=4", "--batches_per_epoch=4")
    loaders = signal_game.build_loaders(opts, SIGNAL_DATA())
    game = signal_game.build_game(opts, *signal_game.build_agents(opts, SIGNAL_DATA().n_features))

    def evaluate(game, batches, device):
        sender, receiver = agent_of(game.sender), agent_of(game.receiver)
        return signal_game.evaluate(
            opts, sender, receiver, batches, device, signal_game.wrapper_temperature(opts, game)
        )

    return opts, game, loaders["train"], evaluate


def agent_of(wrapper):
    """The agent within all its wrappers."""
    for name in ("agent", "sender"):
        if hasattr(wrapper, name):
            return agent_of(getattr(wrapper, name))
    return wrapper


def build_bit_vector_vae(params):
    opts = options(bit_vector_vae, params, "--latent_size=6", "--nll_samples=4", "--validation_nll_samples=2")
    images = BIT_VECTOR_DATA().train
    vae = bit_vector_vae.build_vae(opts, images.pixels.shape[1], images.levels)

    def evaluate(vae, batches, device):
        opts.device = device
        return bit_vector_vae.evaluate(opts, vae, batches)[0]

    return opts, vae, bit_vector_data.ImageLoader(images, opts.batch_size, opts.random_seed), evaluate


def build_semi_supervised_vae(params):
    opts = options(semi_supervised_vae, params)
    game = semi_supervised_vae.build_game(opts, SEMI_SUPERVISED_DATA())

    def evaluate(game, batches, device):
        opts.device = device
        return semi_supervised_vae.evaluate(opts, game, batches)

    return opts, game, semi_supervised_vae.build_loaders(opts, SEMI_SUPERVISED_DATA())["train"], evaluate


# How often a step of the game waits, beside FaultGuard's once. "gather", which both VAEs play with, waits for the
# number of terms; the distortion of grey levels for the largest logit; EGG's games and wrappers check distributions.
RUNS = {
    ("signal_game", ""): 1,
    ("signal_game", "--sender=paper --pixels=brightness"): 1,
    ("signal_game", "--normalizer=entmax15"): 1,
    ("signal_game", "--normalizer=1.3"): 1,
    ("signal_game", "--mode=sumsample --max_support=3"): 1,
    ("signal_game", "--mode=nvil"): 1,
    ("signal_game", "--mode=sfe"): 3,
    ("signal_game", "--mode=sfe --baseline_type=builtin"): 3,
    ("signal_game", "--mode=sfe --baseline_type=none"): 3,
    ("signal_game", "--mode=sfe --baseline_type=sample"): 1,
    ("signal_game", "--mode=sfe --loss_type=acc"): 4,
    ("signal_game", "--mode=gs"): 5,
    ("signal_game", "--mode=gs --straight_through"): 5,
    ("semi_supervised_vae", ""): 2,
    ("semi_supervised_vae", "--normalizer=entmax15"): 2,
    ("semi_supervised_vae", "--labeled_only"): 0,
    ("semi_supervised_vae", "--mode=sumsample"): 2,
    ("semi_supervised_vae", "--mode=nvil"): 1,
    ("semi_supervised_vae", "--mode=sfe"): 1,
    ("semi_supervised_vae", "--mode=sfe --baseline_type=sample"): 1,
    ("semi_supervised_vae", "--mode=gs"): 1,
    ("semi_supervised_vae", "--mode=gs --straight_through"): 1,
    ("bit_vector_vae", ""): 3,
    ("bit_vector_vae", "--decomposition=threshold"): 3,
    ("bit_vector_vae", "--decomposition=active_set"): None,
    ("bit_vector_vae", "--budget=2"): 3,
    ("bit_vector_vae", "--max_support=2"): 3,
    ("bit_vector_vae", "--mode=topksparse"): 3,
    ("bit_vector_vae", "--mode=topksparse --max_support=2 --nll=paper"): 3,
    ("bit_vector_vae", "--mode=nvil"): 2,
    ("bit_vector_vae", "--mode=sfe"): 2,
    ("bit_vector_vae", "--mode=sfe --baseline_type=sample"): 3,
    ("bit_vector_vae", "--mode=gs"): 2,
    ("bit_vector_vae", "--mode=gs --straight_through"): 2,
}
IN_EGG = {("signal_game", "--mode=sfe"): 4, ("signal_game", "--mode=sfe --loss_type=acc"): 5}
BUILDERS = {
    "signal_game": build_signal_game,
    "semi_supervised_vae": build_semi_supervised_vae,
    "bit_vector_vae": build_bit_vector_vae,
}


def train(opts, game, batches, device, accelerator):
    """Losses of some steps with the optimizer that a Trainer is given, before it moves the game; and of the last step
    where it waits, and where it copies to the device.
    """
    optimizer = training.build_optimizer(opts, game.parameters())
    guard = faults.FaultGuard(game, optimizer, opts.random_seed, len(batches))
    game.to(device).train()
    torch.manual_seed(5)
    losses = []
    for batch in batches:
        there = host.core.batch.Batch(*batch).to(device)
        with accelerator.count() as counted:
            optimizer.zero_grad()
            loss, _ = game(*there)
            loss.backward()
            optimizer.step()
        losses.append(loss.detach())
    guard.on_train_end()
    waits = [place for place in counted.synchronizations if not place.endswith(" multinomial")]  # before torch 2.5
    return losses, waits, counted.copies_to_device


@pytest.mark.slow
@pytest.mark.parametrize(("entry", "params"), RUNS)
def test_zoo(accelerator, entry, params):
    opts, game, loader, evaluate = BUILDERS[entry](params.split())
    batches = [tuple(batch) for batch, _ in zip(loader, range(3), strict=False)]
    on_cpu = copy.deepcopy(game)
    expected = evaluate(on_cpu, batches[:1], torch.device("cpu"))
    assert evaluate(game, batches[:1], accelerator.device) == pytest.approx(expected, rel=1e-4, abs=1e-5)

    losses, waits, copies = train(opts, game, batches, accelerator.device, accelerator)
    on_cpu.cpu()
    expected, _, _ = train(opts, on_cpu, batches, torch.device("cpu"), accelerator)
    torch.testing.assert_close(accelerator.host(losses), expected, atol=1e-4, rtol=1e-4)
    of_guard = [place for place in waits if place.startswith("zoo/faults.py")]
    assert len(of_guard) == 1, waits
    wanted = IN_EGG.get((entry, params), RUNS[entry, params]) if host.is_egg() else RUNS[entry, params]
    assert len(waits) - 1 == wanted or (wanted is None and len(waits) > 4), waits
    assert [place for place in copies if not place.startswith("core/")] == []  # EGG's own, in every step


@pytest.mark.parametrize("skip", [False, True])
def test_guard_finds_a_fault_on_the_device(accelerator, skip, capsys):
    opts, game, loader, _ = build_signal_game([])
    optimizer = training.build_optimizer(opts, game.parameters())
    guard = faults.FaultGuard(game, optimizer, 1, 4, skip=skip)
    game.to(accelerator.device)
    guard.on_epoch_begin(1)
    batch = host.core.batch.Batch(*next(iter(loader))).to(accelerator.device)
    loss, _ = game(*batch)
    loss.backward()
    game.receiver.read.weight.grad[0, 0] = float("nan")
    before = [accelerator.host(parameter.detach()).clone() for parameter in game.parameters()]
    if not skip:
        with pytest.raises(FloatingPointError, match=r"gradient of receiver\.read\.weight"):
            optimizer.step()
        return
    optimizer.step()
    assert "gradient of receiver.read.weight" in capsys.readouterr().err
    for now, then in zip(game.parameters(), before, strict=True):
        assert torch.equal(accelerator.host(now.detach()), then)


@pytest.mark.slow
@pytest.mark.parametrize("fp16", [False, True])
def test_trainer(accelerator, fp16):
    """The host's Trainer on the device: it moves game and batches, copies Interactions back, and scales gradients."""

    def trained(device, params):
        torch.manual_seed(3)
        # not Adam, which turns rounding errors of small gradients into whole steps
        opts, game, loader, _ = build_signal_game(["--optimizer=sgd", "--lr=0.1", *params])
        opts.device = device
        optimizer = training.build_optimizer(opts, game.parameters())
        trainer = host.core.Trainer(game=game, optimizer=optimizer, train_data=loader, validation_data=loader)
        trainer.train(n_epochs=2)
        return game, *trainer.eval()

    on_cpu, expected, _ = trained(torch.device("cpu"), [])
    game, loss, interaction = trained(accelerator.device, ["--fp16"] if fp16 else [])
    assert loss == pytest.approx(expected, abs=0.02 if fp16 else 1e-4)
    assert interaction.message.device.type == "cpu"
    for one, other in zip(game.parameters(), on_cpu.parameters(), strict=True):
        found = accelerator.host(one.detach())
        if fp16:
            assert found.isfinite().all()
        else:
            torch.testing.assert_close(found, other.detach(), atol=1e-4, rtol=1e-3)
