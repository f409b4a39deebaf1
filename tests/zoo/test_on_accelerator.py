"""Every game of the zoo on an emulated GPU: trained and tested as on the CPU, and how often a step waits for it."""

import copy
import functools

import pytest
import torch

from egg_sparse import host
from egg_sparse.zoo import faults, loaders, training
from egg_sparse.zoo.bit_vector_vae import data as bit_vector_data
from egg_sparse.zoo.bit_vector_vae import train as bit_vector_vae
from egg_sparse.zoo.semi_supervised_vae import data as semi_supervised_data
from egg_sparse.zoo.semi_supervised_vae import train as semi_supervised_vae
from egg_sparse.zoo.signal_game import data as signal_data
from egg_sparse.zoo.signal_game import train as signal_game
from emulated_accelerator import NON_BLOCKING

SIGNAL_DATA = functools.cache(lambda: signal_data.load("digits", None, "data", False))
BIT_VECTOR_DATA = functools.cache(lambda: bit_vector_data.load("digits", ""))
SEMI_SUPERVISED_DATA = functools.cache(lambda: semi_supervised_data.load("digits", "", None))


def options(module, params, *defaults):
    return module.parse_options(["--batch_size=8", "--random_seed=1", *defaults, *params])


def build_signal_game(params):
    opts = options(signal_game, params, "--vocab_size=12", "--game_size=4", "--batches_per_epoch=4")
    loader = signal_game.build_loaders(opts, SIGNAL_DATA())["train"]
    game = signal_game.build_game(opts, *signal_game.build_agents(opts, SIGNAL_DATA().n_features))

    def evaluate(game, batches, device):
        sender, receiver = agent_of(game.sender), agent_of(game.receiver)
        return signal_game.evaluate(
            opts, sender, receiver, batches, device, signal_game.wrapper_temperature(opts, game)
        )

    callbacks = signal_game.METHODS[opts.mode].callbacks(opts, game.sender, len(loader))
    return opts, game, loader, evaluate, callbacks


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

    loader = bit_vector_data.ImageLoader(images, opts.batch_size, opts.random_seed)
    return opts, vae, loader, evaluate, bit_vector_vae.build_callbacks(opts, vae, len(loader))


def build_semi_supervised_vae(params):
    opts = options(semi_supervised_vae, params)
    game = semi_supervised_vae.build_game(opts, SEMI_SUPERVISED_DATA())

    def evaluate(game, batches, device):
        opts.device = device
        return semi_supervised_vae.evaluate(opts, game, batches)

    loader = semi_supervised_vae.build_loaders(opts, SEMI_SUPERVISED_DATA())["train"]
    callbacks = semi_supervised_vae.METHODS[opts.mode].callbacks(opts, game.game.sender, len(loader))
    return opts, game, loader, evaluate, callbacks


# How often a step waits: for the largest support. "gather", which both VAEs play with, waits for the number of terms,
# too; EGG's games and wrappers check distributions.
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
    ("bit_vector_vae", ""): 2,
    ("bit_vector_vae", "--decomposition=threshold"): 2,
    ("bit_vector_vae", "--decomposition=active_set"): None,
    ("bit_vector_vae", "--budget=2"): 2,
    ("bit_vector_vae", "--max_support=2"): 2,
    ("bit_vector_vae", "--mode=topksparse"): 2,
    ("bit_vector_vae", "--mode=topksparse --max_support=2 --nll=paper"): 2,
    ("bit_vector_vae", "--mode=nvil"): 1,
    ("bit_vector_vae", "--mode=sfe"): 1,
    ("bit_vector_vae", "--mode=sfe --baseline_type=sample"): 1,
    ("bit_vector_vae", "--mode=gs"): 1,
    ("bit_vector_vae", "--mode=gs --straight_through"): 1,
}
IN_EGG = {("signal_game", "--mode=sfe"): 4, ("signal_game", "--mode=sfe --loss_type=acc"): 5}
BUILDERS = {
    "signal_game": build_signal_game,
    "semi_supervised_vae": build_semi_supervised_vae,
    "bit_vector_vae": build_bit_vector_vae,
}


class Steps:
    """A loader that counts, for each of its batches, what waits and what is copied until the next one is asked for."""

    def __init__(self, loader, accelerator):
        self.loader = loader
        self.accelerator = accelerator
        self.counted = []

    def __iter__(self):
        batches = iter(self.loader)
        while True:
            with self.accelerator.count() as counted:
                batch = next(batches, None)
                if batch is None:
                    return
                yield batch
            self.counted.append(counted)

    def __len__(self):
        return len(self.loader)


class Losses(host.core.Callback):
    def __init__(self):
        self.of_batches = []

    def on_batch_end(self, logs, loss, batch_id, is_training=True):
        self.of_batches.append(loss.detach())


def train(opts, game, batches, callbacks, device, accelerator):
    """The losses of an epoch of the Trainer, and what its last step waits for and copies."""
    opts.device = device
    optimizer = training.build_optimizer(opts, game.parameters())
    guard, losses = faults.FaultGuard(game, optimizer, opts.random_seed, len(batches)), Losses()
    callbacks = [guard, *callbacks, losses]
    if device.type == "cuda":
        batches, callbacks = loaders.OnDevice(batches, device), [training.TransferOfInteractions(game), *callbacks]
    steps = Steps(batches, accelerator)
    torch.manual_seed(5)
    host.core.Trainer(game=game, optimizer=optimizer, train_data=steps, callbacks=callbacks).train(1)
    return losses.of_batches, steps.counted[-1]


def without(places, *starts):
    return [place for place in places if not place.startswith(starts)]


@pytest.mark.slow
@pytest.mark.parametrize(("entry", "params"), RUNS)
def test_zoo(accelerator, entry, params):
    """Trained and tested as on the CPU. A step waits for what its game waits for, and for nothing else."""
    opts, game, loader, evaluate, callbacks = BUILDERS[entry](params.split())
    batches = [tuple(batch) for batch, _ in zip(loader, range(3), strict=False)]
    on_cpu, callbacks_on_cpu = copy.deepcopy((game, callbacks))
    expected = evaluate(on_cpu, batches[:1], torch.device("cpu"))
    assert evaluate(game, batches[:1], accelerator.device) == pytest.approx(expected, rel=1e-4, abs=1e-5)

    losses, counted = train(opts, game, batches, callbacks, accelerator.device, accelerator)
    on_cpu.cpu()
    expected, _ = train(opts, on_cpu, batches, callbacks_on_cpu, torch.device("cpu"), accelerator)
    torch.testing.assert_close(accelerator.host(losses), expected, atol=1e-4, rtol=1e-4)

    waits = [place for place in counted.synchronizations if not place.endswith(" multinomial")]  # before torch 2.5
    wanted = IN_EGG.get((entry, params), RUNS[entry, params]) if host.is_egg() else RUNS[entry, params]
    assert len(waits) == wanted or (wanted is None and len(waits) > 4), waits
    copies = [place for place in counted.copies_to_device if not place.endswith(NON_BLOCKING)]
    assert without(copies, "core/") == [], "EGG's own, in every step"
    tensors = {id(x) for x in torch.utils._pytree.tree_leaves(batches[-1])}
    assert len(counted.copies_to_device) - len(copies) == len(tensors)


class TestGuard:
    """A gradient with a NaN, on the device."""

    @pytest.fixture
    def step(self, accelerator, optimizer, skip):
        """A step with a fault, and the game, its guard and its weights before it."""
        opts, game, loader, _, _ = build_signal_game([f"--optimizer={optimizer}"])
        optimizer = training.build_optimizer(opts, game.parameters())
        guard = faults.FaultGuard(game, optimizer, 1, 4, skip=skip)
        game.to(accelerator.device)
        guard.on_epoch_begin(1)
        batch = host.core.batch.Batch(*next(iter(loader))).to(accelerator.device)

        def take(fault):
            optimizer.zero_grad()
            loss, _ = game(*batch)
            loss.backward()
            if fault:
                game.receiver.read.weight.grad[0, 0] = float("nan")
            with accelerator.count() as counted:
                optimizer.step()
            return counted

        take(False)
        return take, game, guard, [accelerator.host(parameter.detach()).clone() for parameter in game.parameters()]

    @pytest.mark.parametrize("skip", [False, True])
    @pytest.mark.parametrize("optimizer", ["adam", "sgd"])
    def test_finds_it(self, accelerator, step, optimizer, skip, capsys):
        """The fused Adam of a GPU leaves out the step, and no one waits; the host says so in the next step."""
        take, game, _, before = step

        def find(take):
            if skip:
                take(True) if optimizer == "sgd" else take(False)
                assert capsys.readouterr().err.count("gradient of receiver.read.weight is not finite at step 2,") == 1
            else:
                with pytest.raises(FloatingPointError, match=r"gradient of receiver\.read\.weight .* at step 2,"):
                    take(optimizer == "sgd")

        if optimizer == "adam":
            assert take(True).synchronizations == []
        else:
            find(take)
        for now, then in zip(game.parameters(), before, strict=True):
            assert torch.equal(accelerator.host(now.detach()), then)
        if optimizer == "adam":
            find(take)

    @pytest.mark.parametrize(("optimizer", "skip"), [("adam", False)])
    def test_finds_it_at_the_end_of_an_epoch(self, step):
        take, _, guard, _ = step
        take(True)
        with pytest.raises(FloatingPointError, match=r"gradient of receiver\.read\.weight .* at step 2,"):
            guard.on_epoch_end(0.0, None, 1)


@pytest.mark.slow
@pytest.mark.parametrize("fp16", [False, True])
def test_trainer(accelerator, fp16):
    """The host's Trainer alone: it moves game and batches, copies Interactions back, and scales gradients."""

    def trained(device, params):
        torch.manual_seed(3)
        # not Adam, which turns rounding errors of small gradients into whole steps
        opts, game, loader, _, _ = build_signal_game(["--optimizer=sgd", "--lr=0.1", *params])
        opts.device = device
        optimizer = training.build_optimizer(opts, game.parameters())
        steps = Steps(loader, accelerator)
        trainer = host.core.Trainer(game=game, optimizer=optimizer, train_data=steps, validation_data=loader)
        trainer.train(n_epochs=2)
        of_interaction = [place for place in steps.counted[-1].synchronizations if place.endswith(" synchronize")]
        assert len(of_interaction) == (device.type == "cuda" and not host.is_egg()), "one for all of its tensors"
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
