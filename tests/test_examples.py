"""The examples: their scripts differ by what their READMEs show, run on either host, and play the same games."""

import argparse
import difflib
import importlib
import itertools
import json
import math
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.distributions import Distribution, constraints

from egg_sparse import CommunicationMarg, SenderReceiverRnnMarg, SymbolGameMarg, host

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"
GAMES = sorted(script.parent.name for script in EXAMPLES.glob("*/before.py"))
SEQUENCES = {script.parent.name for script in EXAMPLES.glob("*/before.py") if "core.Rnn" in script.read_text("utf-8")}
SHORT = {
    "guess_number": ["--batch_size=64", "--n_examples_per_epoch=192"],
    "simple_autoenc": ["--batch_size=64", "--batches_per_epoch=3"],
    "signal_game": ["--n_images=200", "--batches_per_epoch=3"],
    "population": ["--n_images=192", "--recv_hidden_dim=32"],
    "basic_games": ["--n_candidates=3", "--n_games=64"],
    "channel": ["--batches_per_epoch=3", "--batch_size=16", "--sender_hidden=16", "--max_len=3"],
    "compo_vs_generalization": ["--n_values=5", "--data_scaler=5"],
    "external_game": [],
    "objects_game": ["--train_samples=96", "--validation_samples=20"],
    "simple_autoenc_sequences": ["--batch_size=16", "--batches_per_epoch=3"],
    "summation": ["--batches_per_epoch=3"],
}
MODES = {
    "guess_number": ("gs", "rf", "non_diff"),
    **dict.fromkeys(("basic_games", "simple_autoenc", "simple_autoenc_sequences", "signal_game"), ("rf", "gs")),
    "external_game": ("gs", "rf"),
}
RUNS = [
    *((game, mode) for game in GAMES for mode in MODES.get(game, ("",))),
    *(("basic_games", mode, "--game_type=discri") for mode in MODES["basic_games"]),
    ("channel", "", "--transformer"),
]
REINFORCE = ("channel", "compo_vs_generalization")  # without --mode


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES.parent)
    yield
    Distribution.set_default_validate_args(__debug__)  # as PyTorch has it; scripts set it for the process


@pytest.fixture
def play(monkeypatch, capsys):
    """A function that runs a script: its game, the parameters before and after training, and the lines it prints."""

    def run(game, script, *params):
        found = []

        class Trainer(host.core.Trainer):
            def __init__(self, game, *args, **kwargs):
                found.extend((game, [parameter.detach().clone() for parameter in game.parameters()]))
                super().__init__(game, *args, **kwargs)

        options = SHORT.get(game, ["--n_images=64"])
        main = importlib.import_module(f"examples.{game}.{script}").main
        with monkeypatch.context() as patch:
            patch.setattr(host.core, "Trainer", Trainer)
            main(["--random_seed=1", "--n_epochs=1", "--no_cuda", *options, *params])
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
        return *found, list(found[0].parameters()), lines

    return run


@pytest.mark.parametrize("game", GAMES)
def test_readme_shows_the_difference(game):
    before, after = (
        (EXAMPLES / game / script).read_text(encoding="utf-8").splitlines(keepends=True)
        for script in ("before.py", "after.py")
    )
    difference = "".join(difflib.unified_diff(before, after, "before.py", "after.py", n=1))
    readme = (EXAMPLES / game / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"```diff\n(.*?)```", readme, re.DOTALL) == [difference]
    added = [line[1:].strip() for line in difference.splitlines()[2:] if line[0] == "+"]
    assert added == ["from egg_sparse import marginalize", "game = marginalize(game)"]
    removed = [line for line in difference.splitlines()[2:] if line[0] == "-"]
    goes = ("TemperatureUpdater", "Distribution", "agents.mended")
    assert all(any(name in line for name in goes) or line == "-" for line in removed)


def test_readmes_name_commands_that_exist():
    readmes = {game: (EXAMPLES / game / "README.md").read_text(encoding="utf-8") for game in GAMES}
    for game, readme in readmes.items():
        commands = re.findall(r"^python -m (examples\.\w+\.\w+)(?: --mode (\w+))?$", readme, re.MULTILINE)
        assert [command for command, _ in commands] == [f"examples.{game}.{script}" for script in ("before", "after")]
        assert all(mode in MODES.get(game, ("",)) for _, mode in commands)
    overview = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"`python -m examples\.(\w+)\.after`", overview)) == GAMES


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS, ids=["-".join(run).strip("-") for run in RUNS])
def test_after_plays_the_game_of_before(run, play):
    game, mode, *params = run
    params += [f"--mode={mode}"] if mode else []
    old, old_first, old_last, old_lines = play(game, "before", *params)
    new, new_first, new_last, new_lines = play(game, "after", *params)
    if game == "population":
        assert type(old) is type(new) is host.core.PopulationGame
        assert isinstance(new.game, CommunicationMarg)
    else:
        estimator = "Reinforce" if game in REINFORCE or mode not in ("", "gs") else "GS"
        kind = "SenderReceiverRnn" if game in SEQUENCES else "SymbolGame"
        assert isinstance(old, getattr(host.core, kind + estimator))
        assert isinstance(new, SenderReceiverRnnMarg if game in SEQUENCES else SymbolGameMarg)
    for one, other in zip(old_first, new_first, strict=True):
        assert torch.equal(one, other), "the agents of both scripts begin with the same weights"
    for lines in (old_lines, new_lines):
        assert [line["mode"] for line in lines] == ["train", "test"]
        assert all(math.isfinite(value) for line in lines for key, value in line.items() if key != "mode")
        assert all(("acc" in line) == (game != "mnist_autoenc") for line in lines)
    assert ["support" in line for line in old_lines + new_lines] == [False, False, True, True]
    for first, last in ((old_first, old_last), (new_first, new_last)):
        moved = [not torch.equal(one, other) for one, other in zip(first, last, strict=True)]
        # some agents of a population may not be drawn, and a Transformer that sees one vector needs no query
        assert all(moved) or game == "population" or "--transformer" in params
        assert any(moved)


@pytest.mark.slow
@pytest.mark.parametrize("game", ["guess_number", "mnist_classification", "mnist_overfit"])
def test_probabilities_that_rounding_puts_off_one_are_played(game, play, monkeypatch):
    never = property(lambda self: lambda value: torch.zeros(value.shape[:-1], dtype=torch.bool))
    monkeypatch.setattr(type(constraints.simplex), "check", never)
    *_, lines = play(game, "before")
    assert len(lines) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("game", "settings"),
    [
        ("simple_autoenc", ["--lr=0.01"]),
        ("simple_autoenc_sequences", ["--batch_size=16"]),
    ],
)
def test_swap_learns_a_small_game(game, settings, play):
    """The one-hot vectors are few enough for a short training: four of four are understood."""
    *_, lines = play(game, "after", "--mode=rf", "--n_features=4", "--batches_per_epoch=200", *settings)
    assert lines[-1]["acc"] == 1


def idx(array):
    """An array of bytes in the format of MNIST's files."""
    return b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()


class TestData:
    def options(self, game, *params):
        agents = importlib.import_module(f"examples.{game}.agents")
        parser = argparse.ArgumentParser()
        agents.add_options(parser)
        return agents, host.core.init(parser, ["--random_seed=1", "--batch_size=16", *params])

    def test_mnist(self, tmp_path):
        folder = tmp_path / "MNIST" / "raw"
        folder.mkdir(parents=True)
        rng = np.random.default_rng(0)
        written = {}
        for part, size in (("train", 40), ("t10k", 12)):
            pixels, classes = rng.integers(0, 256, (size, 28, 28), np.uint8), rng.integers(0, 10, size, np.uint8)
            (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(pixels))
            (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(classes))
            written[part] = pixels, classes
        agents, opts = self.options("mnist_autoenc", f"--data_root={tmp_path}", "--n_images=30")
        train, validation = agents.build_data(opts)
        for batches, (pixels, classes), n_images in ((train, written["train"], 30), (validation, written["t10k"], 12)):
            images, labels = batches.tensors
            np.testing.assert_allclose(images.numpy(), pixels[:n_images, None] / 255, atol=1e-6)
            assert labels.tolist() == classes[:n_images].tolist()
        assert sorted(len(images) for images, _ in train) == [14, 16]

    def test_digits_are_the_same_for_every_seed(self):
        agents, opts = self.options("mnist_autoenc")
        train, validation = agents.build_data(opts)
        (images, classes), (new, _) = train.tensors, validation.tensors
        assert images.shape == (1400, 1, 28, 28)
        assert new.shape == (397, 1, 28, 28)
        assert images.min() == 0
        assert images.max() <= 1
        host.core.init(params=["--random_seed=2"])
        assert torch.equal(agents.build_data(opts)[0].tensors[1], classes)

    def test_every_image_is_in_one_batch(self):
        from examples.data import Batches

        rows = torch.arange(10)
        for drop_last, sizes in ((False, [4, 4, 2]), (True, [4, 4])):
            batches = Batches(rows, -rows, batch_size=4, drop_last=drop_last)
            epochs = [list(batches) for _ in range(2)]
            for epoch in epochs:
                assert [len(one) for one, _ in epoch] == sizes
                assert len(batches) == len(sizes)
                assert all(torch.equal(one, -other) for one, other in epoch)
                assert len({int(row) for one, _ in epoch for row in one}) == sum(sizes)
            assert not torch.equal(torch.cat([one for one, _ in epochs[0]]), torch.cat([one for one, _ in epochs[1]]))
        assert torch.equal(torch.cat([one for one, _ in Batches(rows, rows, batch_size=4, shuffle=False)]), rows)

    def test_too_few_images_are_refused(self, capsys):
        with pytest.raises(SystemExit):
            self.options("mnist_autoenc", "--n_images=1")
        assert "n_images" in capsys.readouterr().err

    def test_pairs_of_digits(self):
        from examples.mnist_classification.agents import in_pairs

        classes = torch.tensor([3, 1, 4, 1, 5])
        images = classes[:, None, None, None].expand(-1, 1, 28, 28).float()
        pairs, labels = in_pairs(images, classes, 25)
        left, right = pairs[:, 0, 0, 0].long(), pairs[:, 0, 0, -1].long()
        assert list(zip(left.tolist(), right.tolist(), strict=True)) == [(3, 4), (1, 1), (4, 3), (1, 1)]
        assert labels.tolist() == [34 % 25, 11, 43 % 25, 11]

    @pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
    def test_corrupted_labels(self, share):
        from examples.mnist_overfit.agents import corrupted

        classes = torch.arange(4000) % 10
        found = corrupted(classes, share, seed=1)
        assert float((found != classes).float().mean()) == pytest.approx(0.9 * share, abs=0.03)
        assert torch.equal(found, corrupted(classes, share, seed=1))

    def test_what_each_agent_knows_of_a_number(self):
        agents, opts = self.options(
            "guess_number", "--n_bits=5", "--bits_s=3", "--bits_r=4", "--n_examples_per_epoch=64"
        )
        train, validation = agents.build_data(opts)
        numbers = [int("".join(str(int(bit)) for bit in bits), 2) for bits in validation[0][1]]
        assert sorted(numbers) == list(range(32))
        for sees, all_bits, reads in (*train, *validation):
            assert torch.equal(sees[:, :3], all_bits[:, :3])
            assert torch.equal(reads[:, 1:], all_bits[:, 1:])
            assert not sees[:, 3:].any()
            assert not reads[:, :1].any()

    def test_the_receiver_sees_the_candidates_in_another_order(self):
        agents, opts = self.options("signal_game", "--game_size=4")
        classes = torch.arange(60) % 10
        images = torch.rand(60, 1, 28, 28)
        known = torch.nn.functional.normalize(images.flatten(1), dim=1)
        seen, places = set(), []
        for _ in range(20):
            candidates, labels, shuffled = agents.draw(images, classes, opts)
            rows, shuffled_rows = ((view @ known.t()).argmax(2) for view in (candidates, shuffled))
            assert torch.equal(rows.sort(1).values, shuffled_rows.sort(1).values)
            assert torch.equal(shuffled_rows.gather(1, labels[:, None]).squeeze(1), rows[:, 0])
            assert all(len(set(row)) == 4 for row in classes[rows].tolist())
            torch.testing.assert_close(candidates, known[rows])
            seen |= set(rows.flatten().tolist())
            places += labels.tolist()
        assert seen == set(range(60))
        assert min(places.count(place) for place in range(4)) > 40

    def test_new_objects_are_held_out(self):
        agents, opts = self.options("compo_vs_generalization", "--n_attributes=3", "--n_values=4", "--data_scaler=2")
        train, validation = agents.build_data(opts)
        known = [tuple(values) for _, batch in train for values in batch.tolist()]
        new = [tuple(values) for _, batch in validation for values in batch.tolist()]
        assert len(new) == round(0.1 * 4**3)
        assert sorted([*known, *new, *new]) == sorted([*itertools.product(range(4), repeat=3)] * 2)
        for one_hot, values in train:
            assert torch.equal(one_hot.view(-1, 3, 4).argmax(2), values)
            assert torch.equal(one_hot.sum(1), torch.full((len(values),), 3.0))
        basic, opts = self.options("basic_games", "--n_values=4")
        seen, unseen = (set(map(tuple, batches.tensors[1].tolist())) for batches in basic.build_data(opts))
        assert len(seen) + len(unseen) == len(seen | unseen) == 4**3
        _, opts = self.options("basic_games", "--n_values=4", "--game_type=discri", "--n_games=600")
        train, validation = basic.build_data(opts)
        for batches, objects in ((train, seen), (validation, unseen)):
            shown = batches.tensors[2].view(-1, 3, 4).argmax(2)
            assert set(map(tuple, shown.tolist())) == objects

    def test_the_target_is_one_of_different_candidates(self):
        from examples.basic_games.agents import tuples

        objects = torch.arange(6.0)[:, None]
        target, labels, candidates = tuples(objects, 4, 2000, torch.Generator().manual_seed(1))
        assert torch.equal(candidates[torch.arange(2000), labels], target)
        assert all(len(set(game)) == 4 for game in candidates.squeeze(2).tolist())
        assert labels.bincount(minlength=4).min() > 400
        assert target.flatten().long().bincount(minlength=6).min() > 250
        agents, opts = self.options("objects_game", "--n_dimensions=2", "--n_values=3", "--n_distractors=8")
        (batch, *_), _ = agents.build_data(opts)
        assert sorted(batch[2][0].tolist()) == [[a, b] for a in (1, 2, 3) for b in (1, 2, 3)]

    def test_half_of_the_strings_have_as_many_a_as_b(self):
        agents, opts = self.options("summation", "--max_n=4", "--batch_size=400")
        strings, labels = agents.draw(opts)
        found = ["".join(" ab"[symbol] for symbol in string).rstrip() for string in strings.tolist()]
        counts = [(string.count("a"), string.count("b")) for string in found]
        assert found == ["a" * n_a + "b" * n_b for n_a, n_b in counts]
        assert [n_a == n_b for n_a, n_b in counts] == labels.bool().tolist()
        assert labels.sum() == 200
        assert set(counts) == {*itertools.product(range(4), repeat=2)} - {(0, 0)}
        assert (strings[:, -1] == 0).all()
        (first, *_), (again, *_) = (agents.build_data(opts)[1] for _ in range(2))
        assert torch.equal(first[0], again[0])

    def test_concepts_by_frequency(self):
        for probs, ratio in (("powerlaw", 1 / 2), ("uniform", 1)):
            agents, opts = self.options("channel", f"--probs={probs}", "--n_features=3", "--batch_size=20000")
            train, ((vectors, concepts),) = agents.build_data(opts)
            n_one, n_two, n_three = next(iter(train))[1].bincount(minlength=3).tolist()
            assert n_two / n_one == pytest.approx(ratio, rel=0.1)
            assert n_three / n_one == pytest.approx(1 / 3 if probs == "powerlaw" else 1, rel=0.1)
            assert torch.equal(vectors, torch.eye(3))
            assert concepts.tolist() == [0, 1, 2]

    def test_vectors_from_a_file(self, tmp_path):
        from examples.external_game.agents import DATA, read

        vectors, classes = read(DATA)
        assert sorted(map(tuple, vectors.tolist())) == [*itertools.product((0, 1), repeat=3)]
        assert torch.equal(vectors.sum(1).long(), classes)
        file = tmp_path / "vectors.csv"
        file.write_text("# two numbers; a class\n0.5 -2;4\n\n1 1e-3;0\n")
        vectors, classes = read(file)
        torch.testing.assert_close(vectors, torch.tensor([[0.5, -2], [1, 1e-3]]))
        agents, opts = self.options("external_game", f"--train_data={file}")
        sender, receiver = agents.build_agents(opts)
        assert (sender.in_features, receiver.out_features, classes.tolist()) == (2, 5, [4, 0])


@pytest.mark.long
@pytest.mark.slow
def test_the_benchmark_of_swaps_plays_examples_and_small_games(tmp_path):
    """EGG has no REINFORCE game of a population of one symbol, no Gumbel-Softmax game of a loss without a gradient."""
    script, file = EXAMPLES.parent / "benchmarks" / "swap_games.py", tmp_path / "runs.json"
    games = ("population", "guess_number non_diff", "guess")
    columns = ("Gumbel-Softmax", "REINFORCE", "exact, schedule")
    options = ["--quick", "--seeds=1", "--games", ",".join(games), "--columns", ";".join(columns), "--out", str(file)]
    subprocess.run([sys.executable, script, *options], check=True, capture_output=True)

    def refuse(constant):
        raise ValueError(f"JSON has no {constant}")

    runs = json.loads(file.read_text(encoding="utf-8"), parse_constant=refuse)["runs"]
    missing = {("population", "REINFORCE"), ("guess_number non_diff", "Gumbel-Softmax")}
    assert {(run["game"], run["column"]) for run in runs} == {*itertools.product(games, columns)} - missing
    for run in runs:
        exact = run["column"] == "exact, schedule"
        assert 0 <= run["success"] <= 1
        assert (run["receiver_calls"] > 1) == exact == (run["support"] is not None)
