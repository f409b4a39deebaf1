"""The table of methods: what a row says is what options, warnings and games do."""

import dataclasses
import importlib

import pytest
import torch

from egg_sparse import host
from egg_sparse.zoo import methods
from egg_sparse.zoo.bit_vector_vae import data as bit_vector_data
from egg_sparse.zoo.bit_vector_vae.games import build_vae
from egg_sparse.zoo.cli import ZooParser
from egg_sparse.zoo.compo_vs_generalization import games as object_games
from egg_sparse.zoo.compo_vs_generalization.data import ObjectLoader, all_objects
from egg_sparse.zoo.semi_supervised_vae import data as semi_supervised_data
from egg_sparse.zoo.semi_supervised_vae import games as semi_supervised_games
from egg_sparse.zoo.signal_game import data as signal_data
from egg_sparse.zoo.signal_game import games as signal_games

TABLES = {
    "signal_game": signal_games.METHODS,
    "semi_supervised_vae": semi_supervised_games.METHODS,
    "bit_vector_vae": methods.BIT_VECTOR_METHODS,
    "compo_vs_generalization": object_games.METHODS,
}
ROWS = [(entry, mode) for entry, table in TABLES.items() for mode in table]


def train_of(entry):
    return importlib.import_module(f"egg_sparse.zoo.{entry}.train")


@pytest.mark.parametrize("entry", TABLES)
def test_every_mode_is_in_the_help_and_every_option_of_a_row_can_be_given(entry, capsys):
    parser = train_of(entry).build_parser()
    known = {action.dest for action in parser._actions}
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    for mode, method in TABLES[entry].items():
        assert f"{method.summary} ({mode})" in said
        assert set(method.options) <= known


@pytest.mark.parametrize(("entry", "mode"), ROWS)
def test_an_option_that_the_mode_does_not_read_draws_a_warning(entry, mode, capsys):
    table = TABLES[entry]
    values = {"straight_through": [], "normalizer": ["softmax"], "decomposition": ["systematic"]}
    values |= {"loss_type": ["nll"], "baseline_type": ["none"], "baseline": ["no"]}
    every = dict.fromkeys(name for method in table.values() for name in method.options)
    params = [text for name in every for text in (f"--{name}", *values.get(name, ["3"]))]
    train_of(entry).parse_options([f"--mode={mode}", "--no_cuda", *params])
    warned = [line for line in capsys.readouterr().err.splitlines() if f"has no effect in mode {mode}" in line]
    named = {line.partition("--")[2].split()[0] for line in warned}
    assert named == set(every) - set(table[mode].options)


def play(entry, params):
    """The Interaction of one training batch at first weights, the method, its options, and the number of messages."""
    torch.manual_seed(0)
    opts = train_of(entry).parse_options([*params, "--no_cuda", "--batch_size=16", "--random_seed=1"])
    if entry == "signal_game":
        images = signal_data.load("digits", None, "", False)
        game = signal_games.build_game(opts, *signal_games.build_agents(opts, images.n_features))
        batch = next(iter(signal_data.GameLoader(images.train, 4, 16, 1, seed=1)))
        return game.train()(*batch)[1], opts, opts.vocab_size
    if entry == "semi_supervised_vae":
        split = semi_supervised_data.load("digits", "", None)
        game = semi_supervised_games.build_game(opts, split)
        batch = next(iter(semi_supervised_data.SemiSupervisedLoader(split.unlabeled, split.labeled, 16)))
        return game.train()(*batch)[1], opts, split.n_classes
    if entry == "compo_vs_generalization":
        objects = torch.from_numpy(all_objects(2, opts.n_values))
        return (
            object_games.build_game(opts).train()(*next(iter(ObjectLoader(objects, opts.n_values, 16))))[1],
            opts,
            None,
        )
    split = bit_vector_data.load("digits", "")
    vae = build_vae(opts, split.train.pixels.shape[1], split.train.levels)
    batch = next(iter(bit_vector_data.ImageLoader(split.train, 16)))
    return vae.train()(*batch)[1], opts, 2**opts.latent_size


@pytest.mark.parametrize(
    ("entry", "params"),
    [
        *((entry, [f"--mode={mode}"]) for entry, mode in ROWS),
        ("semi_supervised_vae", ["--mode=sfe", "--baseline_type=sample"]),
        ("semi_supervised_vae", ["--mode=sumsample", "--max_support=3"]),
        ("semi_supervised_vae", ["--mode=sumsample", "--max_support=10"]),
        ("signal_game", ["--mode=sumsample", "--vocab_size=6"]),
        ("signal_game", ["--mode=sfe", "--baseline_type=sample"]),
    ],
)
def test_receiver_calls_are_those_of_a_training_step(entry, params):
    played, opts, n_messages = play(entry, params)
    method = TABLES[entry][opts.mode]
    said = method.receiver_calls(opts, n_messages)
    if said is None:
        assert (played.aux["receiver_calls"] >= played.aux["support"].clamp(max=256)).all()
    elif "receiver_calls" in played.aux:
        assert float(played.aux["receiver_calls"].mean()) == said
    else:  # EGG's own games play one message
        assert opts.mode in ("sfe", "rf", "gs")
        assert said == 1
    assert ("support" in played.aux) == method.sums


def test_a_new_row_is_an_option_a_warning_and_a_game(capsys):
    built = []
    new = methods.Method(
        "antithetic samples", lambda opts, parts: built.append((opts.pairs, parts)), options=("pairs",)
    )
    table = {**methods.SYMBOL_METHODS, "antithetic": new}
    for mode in ("antithetic", "marg"):
        parser = ZooParser("prog", "description", defaults={})
        parser.group["data"].add_argument("--data", default="digits")
        parser.group["run"].add_argument("--evaluate", action="store_true")
        methods.add_options(parser, table, {"pairs": {"type": int, "default": 1, "help": "pairs of samples"}})
        opts = parser.parse_args([f"--mode={mode}", "--pairs=4"])
        methods.warn_unused(parser, opts, table, {})
        warned = capsys.readouterr().err
        if mode == "antithetic":
            table[opts.mode].build(opts, "parts")
            assert warned == ""
        else:
            assert "--pairs has no effect in mode marg" in warned
    assert built == [(4, "parts")]


def test_a_row_can_be_changed_for_one_experiment():
    changed = dataclasses.replace(methods.GS, options=())
    assert changed.build is methods.GS.build
    assert methods.GS.options


def test_the_host_builds_its_own_games_in_the_signal_game():
    opts = train_of("signal_game").parse_options(["--mode=gs", "--no_cuda"])
    game = signal_games.build_game(opts, *signal_games.build_agents(opts, 9))
    assert isinstance(game, host.core.SymbolGameGS)
