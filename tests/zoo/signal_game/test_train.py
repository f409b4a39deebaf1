"""The signal game: its data, its agents, and runs of every mode, as a user starts them."""

import json
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import zipfile

import entmax
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from egg_sparse import host
from egg_sparse.zoo import checkpoints, resume
from egg_sparse.zoo.cli import run
from egg_sparse.zoo.signal_game import data, files, train
from egg_sparse.zoo.signal_game.archs import MLPSender, PaperSender, Receiver
from egg_sparse.zoo.signal_game.train import PROG, main, parse_options

SMALL = ["--n_epochs=2", "--batches_per_epoch=4", "--vocab_size=20", "--game_size=4", "--batch_size=16"]


def command(*params, **environment):
    return subprocess.run(
        [sys.executable, "-m", "egg_sparse.zoo.signal_game", *params],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def labeled(counts, n_features=5):
    labels = np.repeat(np.arange(len(counts)), counts)
    np.random.default_rng(0).shuffle(labels)
    features = np.random.default_rng(1).normal(size=(len(labels), n_features)).astype(np.float32)
    return data.Images.from_labels(features, labels)


class TestData:
    @given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(1, 6), st.integers(0, 1000))
    @settings(max_examples=100, deadline=None)
    def test_distinct_integers(self, below, count, seed):
        below = np.array(below) + count
        drawn = data.distinct_integers(np.random.default_rng(seed), below, count)
        assert drawn.shape == (len(below), count)
        assert ((drawn >= 0) & (drawn < below[:, None])).all()
        assert all(len(set(row)) == count for row in drawn)

        rng, by_hand = np.random.default_rng(seed), [[] for _ in below]
        for last in range(count):
            for row, limit in zip(by_hand, below, strict=True):
                integer = int(rng.integers(0, limit - count + last + 1))
                row.append(limit - count + last if integer in row else integer)
        assert (drawn == rng.permuted(np.array(by_hand), axis=1)).all(), "batches of a seed stay what they were"

    def test_distinct_integers_are_uniform_also_by_position(self):
        drawn = data.distinct_integers(np.random.default_rng(0), np.full(60_000, 5), 3)
        for position in range(3):
            np.testing.assert_allclose(np.bincount(drawn[:, position], minlength=5) / 60_000, 0.2, atol=0.01)
        pairs = np.bincount(drawn[:, 0] * 5 + drawn[:, 1], minlength=25).reshape(5, 5) / 60_000
        np.testing.assert_allclose(pairs[~np.eye(5, dtype=bool)], 1 / 20, atol=0.01)

    @pytest.mark.parametrize("same", [False, True])
    def test_games(self, same):
        images = labeled([9, 4, 12, 7, 6, 8])
        concept_of = np.repeat(np.arange(6), images.counts)
        loader = data.GameLoader(images, game_size=5, batch_size=40, n_batches=3, seed=1, same=same)
        where = {tuple(row): i for i, row in enumerate(images.features.tolist())}
        positions = []
        for sender_input, labels, receiver_input in loader:
            assert sender_input.shape == receiver_input.shape == (5, 40, 5)
            for b in range(40):
                sent = [where[tuple(row)] for row in sender_input[:, b].tolist()]
                received = [where[tuple(row)] for row in receiver_input[:, b].tolist()]
                assert sorted(sent) == sorted(received)
                assert received[labels[b]] == sent[0], "the label says where the sender's first image is"
                assert len(set(sent)) == 5
                assert len(set(concept_of[sent])) == (1 if same else 5)
            positions += labels.tolist()
        assert len(loader) == 3
        assert set(positions) == set(range(5))
        if same:
            drawn = {concept_of[where[tuple(row)]] for row in sender_input[0].tolist()}
            assert 1 not in drawn, "concept 1 has only 4 images"

    def test_batches_depend_on_seed_epoch_and_index_alone(self):
        images = labeled([9, 9, 9, 9])

        def batches(seed, epoch, fixed=False):
            loader = data.GameLoader(images, 3, 8, 2, seed, fixed=fixed)
            if epoch is not None:
                loader.set_epoch(epoch)
            return torch.stack([batch[0] for batch in loader])

        torch.manual_seed(1)
        first = batches(1, 1)
        torch.manual_seed(2)
        assert torch.equal(first, batches(1, 1))
        assert not torch.equal(first, batches(2, 1))
        assert not torch.equal(first, batches(1, 2))
        assert torch.equal(batches(1, 1, fixed=True), batches(1, 9, fixed=True))
        loader = data.GameLoader(images, 3, 8, 2, 1)
        epochs = [torch.stack([batch[0] for batch in loader]) for _ in range(2)]
        assert torch.equal(epochs[0], first)
        assert torch.equal(epochs[1], batches(1, 2)), "epochs count on by themselves"

    def test_too_few_concepts_or_images(self):
        with pytest.raises(ValueError, match=r"--game_size.* 3.*test"):
            data.GameLoader(labeled([5, 5, 5]), 4, 8, 2, 1, name="test")
        with pytest.raises(ValueError, match=r"--game_size.* 7.*training"):
            data.GameLoader(labeled([5, 7, 5]), 8, 8, 2, 1, same=True)

    @pytest.mark.parametrize("same", [False, True])
    def test_digits(self, same):
        images = data.load("digits", None, "data", same)
        parts = (images.train, images.validation, images.test)
        assert sum(len(part.features) for part in parts) == 1797
        assert images.n_features == 64
        assert [len(part.counts) for part in parts] == ([10] * 3 if same else [len(p.features) for p in parts])
        assert images.train.features.mean().item() == pytest.approx(0, abs=1e-4)
        assert images.train.features.std().item() == pytest.approx(1, abs=1e-3)
        distinct = [{tuple(row) for row in part.features.tolist()} for part in parts]
        assert not distinct[0] & distinct[2], "train and test images are disjoint"
        again = data.load("digits", None, "data", same)
        assert torch.equal(again.test.features, images.test.features)
        bright = data.load("digits", None, "data", same, standardize=False).train.features
        assert (bright.min(), bright.max()) == (0, 1)
        standardized = (bright - bright.mean()) / bright.std()
        torch.testing.assert_close(standardized, images.train.features, atol=1e-3, rtol=0)

    def write_npz(self, path, **arrays):
        rng = np.random.default_rng(0)
        contents = {"features": rng.normal(size=(200, 6)), "labels": rng.integers(0, 10, 200), **arrays}
        np.savez(path, **{name: value for name, value in contents.items() if value is not None})
        return str(path)

    @pytest.mark.parametrize("labels", [None, np.array([f"concept {i % 8}" for i in range(200)])])
    def test_npz(self, tmp_path, labels):
        arrays = {} if labels is None else {"labels": labels}
        images = data.load("npz", self.write_npz(tmp_path / "a.npz", **arrays), "data", False)
        assert images.n_features == 6
        assert len(images.train.counts) == (10 if labels is None else 8)

    @pytest.mark.parametrize(
        ("arrays", "error"),
        [
            ({"labels": None}, "labels"),
            ({"features": np.zeros((200, 6), dtype=object)}, "cannot be read as features and labels"),
            ({"features": np.zeros(200)}, r"features.*\(200,\)"),
            ({"features": np.zeros((200, 6), dtype="U3")}, "features.*U3"),
            ({"features": np.full((200, 6), np.nan)}, "features.*finite"),
            ({"labels": np.zeros(199, dtype=int)}, "label.*199.*200"),
            ({"labels": np.zeros(200)}, "labels.*float64"),
            ({"features": np.zeros((5, 6)), "labels": np.arange(5)}, "at least 20 images"),
        ],
    )
    def test_npz_refused(self, tmp_path, arrays, error):
        with pytest.raises(ValueError, match=error):
            data.load("npz", self.write_npz(tmp_path / "a.npz", **arrays), "data", False)

    def test_npz_missing_or_damaged(self, tmp_path):
        with pytest.raises(ValueError, match=r"--data npz.* --root"):
            data.load("npz", None, "data", False)
        with pytest.raises(FileNotFoundError, match="--root: there is no file"):
            data.load("npz", str(tmp_path / "no.npz"), "data", False)
        path = tmp_path / "a.npz"
        self.write_npz(path)
        whole = path.read_bytes()
        for content in (b"", b"text", whole[:300], whole[: len(whole) // 2]):
            path.write_bytes(content)
            with pytest.raises(ValueError, match=r"--root.*a\.npz"):
                data.load("npz", str(path), "data", False)

    def write_imagenet(self, root, n=60, labels=None, paths=None, features=None):
        import h5py

        rng = np.random.default_rng(0)
        for part in ("train", "test"):
            folder = root / part
            folder.mkdir(parents=True)
            with h5py.File(folder / "ours_images_single_sm0.h5", "w") as file:
                file["data"] = rng.normal(size=(n, 7)) if features is None else features
            names = np.array([f"concept{i % 6}" for i in range(n)], dtype=object) if labels is None else labels
            (folder / "ours_images_single_sm0.objects").write_bytes(pickle.dumps(names, protocol=2))
            found = [f"{i}.jpg" for i in range(n)] if paths is None else paths
            (folder / "ours_images_paths_sm0.objects").write_bytes(pickle.dumps(found))
        return str(root)

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    @pytest.mark.parametrize("kind", ["object", "text", "list", "int"])
    def test_pickled_labels_of_any_protocol(self, tmp_path, protocol, kind):
        values = [f"concept{i}" for i in range(5)]
        written = {
            "object": np.array(values, dtype=object),
            "text": np.array(values),
            "list": values,
            "int": np.arange(5),
        }[kind]
        path = tmp_path / "labels.objects"
        path.write_bytes(pickle.dumps(written, protocol=protocol))
        assert files.read_pickled(path).tolist() == list(np.asarray(written))

    @pytest.mark.slow
    def test_imagenet(self, tmp_path):
        images = data.load("imagenet", self.write_imagenet(tmp_path / "root"), "data", False)
        assert images.n_features == 7
        assert len(images.train.counts) == 6
        torch.testing.assert_close(images.test.features.norm(dim=1), torch.ones(60))
        root = self.write_imagenet(tmp_path / "more", n=120)
        final = main(["--data=imagenet", f"--root={root}", "--n_epochs=1", "--batches_per_epoch=2", "--game_size=3"])
        assert final["mode"] == "final"

    def test_imagenet_refused(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"--root.*folder"):
            data.load("imagenet", str(tmp_path / "no"), "data", False)
        cases = [
            ({"features": np.zeros((3, 7))}, r"must have shape \(60, n_features\)"),
            ({"features": np.zeros(60)}, r"must have shape \(60, n_features\)"),
            ({"labels": {"a": 1}}, "must hold an array or a list, got dict"),
            ({"labels": np.array(["a", 3] * 30, dtype=object)}, "it must hold strings alone, or integers alone"),
            ({"paths": ["one.jpg"]}, "60 labels but 1 paths"),
        ]
        for number, (contents, error) in enumerate(cases):
            with pytest.raises(ValueError, match=error):
                data.load("imagenet", self.write_imagenet(tmp_path / str(number), **contents), "data", False)
        root = tmp_path / "truncated"
        self.write_imagenet(root)
        file = root / "train/ours_images_single_sm0.h5"
        file.write_bytes(file.read_bytes()[:500])
        with pytest.raises(ValueError, match=r"--root.*ours_images_single_sm0\.h5"):
            data.load("imagenet", str(root), "data", False)
        file.unlink()
        with pytest.raises(FileNotFoundError, match="there is no file"):
            data.load("imagenet", str(root), "data", False)

    @pytest.mark.parametrize(
        "attack",
        [
            lambda marker: pickle.dumps(Attack(os.mkdir, marker)),
            lambda marker: pickle.dumps(Attack(eval, f"__import__('os').mkdir({marker!r})")),
            lambda marker: pickle.dumps(np.array([Attack(os.mkdir, marker)], dtype=object)),
            lambda marker: b"c_codecs\nencode\n(Vx\nVzlib_codec\ntR.",
            lambda marker: b"cnumpy\nload\n(V/dev/null\ntR.",
        ],
    )
    def test_hostile_pickles_are_refused_unexecuted(self, tmp_path, attack):
        marker = tmp_path / "executed"
        path = tmp_path / "labels.objects"
        path.write_bytes(attack(str(marker)))
        with pytest.raises(ValueError, match="is refused: it contains"):
            files.read_pickled(path)
        assert not marker.exists()

    @pytest.mark.parametrize("source", ["mnist", "fashion-mnist"])
    def test_torchvision_folder(self, tmp_path, source):
        name = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}[source]
        raw = tmp_path / name / "raw"
        raw.mkdir(parents=True)
        rng = np.random.default_rng(0)
        for part, n in (("train", 50), ("t10k", 20)):
            images, labels = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8), np.arange(n, dtype=np.uint8) % 10
            header = bytes([0, 0, 8, 3]) + b"".join(int(d).to_bytes(4, "big") for d in images.shape)
            (raw / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
            header = bytes([0, 0, 8, 1]) + n.to_bytes(4, "big")
            (raw / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
        images = data.load(source, None, str(tmp_path), False)
        assert images.n_features == 784
        assert [len(part.features) for part in (images.train, images.validation, images.test)] == [45, 5, 20]
        assert len(data.load(source, None, str(tmp_path), True).test.counts) == 10
        file = raw / "t10k-images-idx3-ubyte"
        file.write_bytes(file.read_bytes()[:1000])
        with pytest.raises(OSError, match=r"--data_root"):
            data.load(source, None, str(tmp_path), False)


class Attack:
    def __init__(self, function, argument):
        self.function, self.argument = function, argument

    def __reduce__(self):
        return self.function, (self.argument,)


class TestAgents:
    def test_paper_sender_is_the_formula(self):
        """A linear map, sigmoids of multiples, a sigmoid of their weighted sum, a linear map over the temperature."""
        sender = PaperSender(9, 5, 7, 11, temperature=10.0)
        assert all("bias" not in name for name, _ in sender.named_parameters())
        images = torch.randn(3, 4, 9)
        embedded = images[0] @ sender.embed.weight.t()
        filters, weights = sender.filter.weight.flatten(), sender.combine.weight.flatten()
        hidden = torch.sigmoid((torch.sigmoid(embedded[..., None] * filters) * weights).sum(-1))
        torch.testing.assert_close(sender(images), hidden @ sender.score.weight.t() / 10)
        images[1:] = 0
        torch.testing.assert_close(sender(images), hidden @ sender.score.weight.t() / 10), "it sees the target alone"

    def test_mlp_sender_sees_the_target_alone(self):
        sender, images = MLPSender(9, 5, 11, 2.0), torch.randn(3, 4, 9)
        scores = sender(images)
        images[1:] = 0
        torch.testing.assert_close(sender(images), scores)
        assert scores.shape == (4, 11)

    @pytest.mark.parametrize("symbol_std", [None, 0.1])
    def test_receiver_compares_candidates_with_the_message(self, symbol_std):
        ids = Receiver(9, 5, 11, one_hot=False, symbol_std=symbol_std)
        vectors = Receiver(9, 5, 11, one_hot=True, symbol_std=symbol_std)
        with torch.no_grad():
            vectors.embed.weight.copy_(ids.embed.weight)
            vectors.read.weight.copy_(ids.read.weight.t())
        images, message = torch.randn(3, 4, 9), torch.tensor([1, 0, 10, 3])
        out = ids(message, images)
        slow = torch.stack([(ids.embed(images[g]) * ids.read(message)).sum(1) for g in range(3)], 1).log_softmax(1)
        torch.testing.assert_close(out, slow)
        torch.testing.assert_close(vectors(nn.functional.one_hot(message, 11).float(), images), slow)


MODES = {
    "marg": ["--mode=marg"],
    "marg softmax": ["--mode=marg", "--normalizer=softmax"],
    "marg entmax15": ["--mode=marg", "--normalizer=entmax15"],
    "marg 1.3": ["--mode=marg", "--normalizer=1.3"],
    "marg same": ["--mode=marg", "--same=1"],
    "marg paper": ["--mode=marg", "--sender=paper"],
    "sfe": ["--mode=sfe"],
    "sfe acc": ["--mode=sfe", "--loss_type=acc", "--baseline_type=builtin"],
    "sfe no baseline": ["--mode=sfe", "--baseline_type=none"],
    "sfe sample": ["--mode=sfe", "--baseline_type=sample"],
    "sfe acc sample": ["--mode=sfe", "--loss_type=acc", "--baseline_type=sample"],
    "nvil": ["--mode=nvil"],
    "sumsample": ["--mode=sumsample", "--max_support=3"],
    "sumsample sparsemax": ["--mode=sumsample", "--max_support=3", "--normalizer=sparsemax"],
    "gs": ["--mode=gs", "--temperature_update_freq=2", "--temperature_decay=0.1"],
    "gs straight through": ["--mode=gs", "--straight_through"],
    "gs paper": ["--mode=gs", "--sender=paper"],
}


class TestEvaluation:
    """What is found is compared with playing every symbol of the vocabulary, one after the other."""

    @pytest.fixture(params=["marg", "marg --normalizer=softmax", "gs", "sumsample"])
    def played(self, request, few_test_games):
        """Options, agents with a language of several symbols per image, loaders, temperature, and outcomes by hand."""
        torch.manual_seed(3)
        opts = parse_options([*f"--mode={request.param}".split(), "--temperature=10", *SMALL, "--no_cuda"])
        images = data.load("digits", None, "data", False)
        sender, receiver = train.build_agents(opts, images.n_features)
        loaders = train.build_loaders(opts, images)
        sparse = opts.mode == "marg" and opts.normalizer == "sparsemax"
        normalize = entmax.sparsemax if sparse else torch.softmax
        game = train.build_game(opts, sender, receiver)
        divided = 1 if opts.mode == "gs" else 10  # by --temperature; in gs by the agent itself
        slow = {"acc": [], "acc_expected": [], "nll": [], "support": [], "message": []}
        with torch.no_grad():
            sender.score.weight.mul_(20)
            receiver.read.weight.mul_(20)
            for images_, labels, candidates in loaders["test"]:
                probs = normalize(sender(images_) / divided, dim=1)
                outputs = []
                for symbol in range(20):
                    message = torch.full(labels.shape, symbol)
                    outputs.append(
                        receiver(
                            nn.functional.one_hot(message, 20).float() if opts.mode == "gs" else message, candidates
                        )
                    )
                outputs = torch.stack(outputs, 1)
                best = probs.argmax(1)
                right = (outputs.argmax(2) == labels[:, None]).float()
                nll = -outputs.gather(2, labels[:, None, None].expand(-1, 20, 1))[..., 0]
                slow["acc"].append(right.gather(1, best[:, None])[:, 0])
                slow["acc_expected"].append((probs * right).sum(1))
                slow["nll"].append((probs * nll).sum(1))
                slow["support"].append((probs > 0).sum(1).float())
                slow["message"].append(best)
        slow = {name: torch.cat(values) for name, values in slow.items()}
        return opts, sender, receiver, loaders, train.wrapper_temperature(opts, game), slow

    def test_equals_brute_force(self, played):
        opts, sender, receiver, loaders, temperature, slow = played
        found = train.play_exactly(opts, sender, receiver, loaders["test"], opts.device, temperature)
        for name, values in slow.items():
            torch.testing.assert_close(found[name], values)
        assert not torch.equal(slow["acc"], slow["acc_expected"])
        means = train.evaluate(opts, sender, receiver, loaders["test"], opts.device, temperature)
        for name, value in means.items():
            if name in slow or name == "loss":
                assert value == pytest.approx(float(slow["nll" if name == "loss" else name].mean()), rel=1e-6, abs=1e-6)
        assert means["messages_used"] == len(slow["message"].unique())

    @pytest.mark.usefixtures("few_test_games")
    @pytest.mark.parametrize("params", [["--mode=sumsample", "--max_support=4"], ["--mode=marg", "--temperature=10"]])
    def test_exact_is_the_share_of_supports_that_training_sums(self, params):
        torch.manual_seed(3)
        opts = parse_options([*params, "--normalizer=sparsemax", *SMALL, "--no_cuda"])
        images = data.load("digits", None, "data", False)
        sender, receiver = train.build_agents(opts, images.n_features)
        loader = train.build_loaders(opts, images)["test"]
        with torch.no_grad():
            sender.score.weight.mul_(20)
            supports = torch.cat(
                [(entmax.sparsemax(sender(game[0]) / opts.temperature, dim=1) > 0).sum(1) for game in loader]
            )
        share = float((supports <= 4).float().mean())
        assert 0 < share < 1
        found = train.evaluate(opts, sender, receiver, loader, opts.device, opts.temperature)
        assert found["exact"] == pytest.approx(1 if opts.mode == "marg" else share)

    def test_plays_every_game_once(self, played, monkeypatch):
        opts, sender, receiver, loaders, temperature, _ = played
        passes, calls = [], []
        plain = data.GameLoader.__iter__
        monkeypatch.setattr(data.GameLoader, "__iter__", lambda loader: passes.append(1) or plain(loader))
        sender.register_forward_hook(lambda *_: calls.append(1))
        train.evaluate(opts, sender, receiver, loaders["test"], opts.device, temperature)
        assert len(passes) == 1
        assert len(calls) == len(loaders["test"])

    @pytest.mark.parametrize("played", ["gs", "sumsample"], indirect=True)
    def test_sampled_success_is_the_expected_one_on_average(self, played):
        opts, sender, receiver, loaders, temperature, slow = played
        found, one_hot = [], opts.mode == "gs"
        for _ in range(200):
            found.append(train.play_sampled(sender, receiver, one_hot, loaders["test"], opts.device, temperature))
        mean, error = torch.stack(found).mean(), torch.stack(found).std() / (200 * len(found[0])) ** 0.5
        assert abs(mean - slow["acc_expected"].mean()) < 4 * error

    def test_games_do_not_depend_on_the_batch_size(self):
        images = data.load("digits", None, "data", False)
        for name, games in (("validation", 1024), ("test", 9984)):
            first, second = (
                list(train.build_loaders(parse_options([f"--batch_size={size}"]), images)[name]) for size in (1, 64)
            )
            assert sum(len(batch[1]) for batch in first) == games
            assert len(first) == games // 64
            for one, other in zip(first, second, strict=True):
                assert all(map(torch.equal, one, other))

    @pytest.mark.slow
    @pytest.mark.parametrize("mode", ["marg", "sfe"])
    def test_validation_reports_both_successes(self, mode, few_test_games, tmp_path):
        """The last epoch's are those of the weights at the end."""
        main([f"--mode={mode}", *SMALL, "--out=run", "--random_seed=3", "--no_cuda"])
        *_, last = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
        opts = parse_options(["--evaluate", "--load_from_checkpoint=run/checkpoints/final.tar", "--no_cuda"])
        images = data.load("digits", None, "data", False)
        sender, receiver = train.build_agents(opts, images.n_features)
        game = train.build_game(opts, sender, receiver)
        resume.load_for_evaluation(opts, game)
        loader = train.build_loaders(opts, images)["validation"]
        temperature = train.wrapper_temperature(opts, game)
        found = train.play_exactly(opts, sender, receiver, loader, opts.device, temperature)
        assert last["mode"] == "validation"
        assert last["acc"] == pytest.approx(float(found["acc"].mean()))
        if mode == "sfe":
            assert last["acc_expected"] == pytest.approx(float(found["acc_expected"].mean()), abs=0.2)
        else:
            assert last["acc_expected"] == pytest.approx(float(found["acc_expected"].mean()))


@pytest.mark.usefixtures("few_test_games")
class TestRuns:
    @pytest.mark.parametrize("mode", [pytest.param(mode, marks=[pytest.mark.slow] * (" " in mode)) for mode in MODES])
    def test_every_mode(self, mode, tmp_path, capsys):
        final = main([*MODES[mode], *SMALL, "--out=run", "--random_seed=3"])
        out, err = capsys.readouterr()
        lines = out.splitlines()
        assert json.loads(lines[-1]) == final
        sums = mode.split()[0] in ("marg", "sumsample")
        assert set(final) == {
            "mode", "acc", "acc_expected", "loss", "support", "receiver_calls", "messages_used", "seconds", "host",
            "device", *(["exact"] if sums else []),
        }  # fmt: skip
        assert final["mode"] == "final"
        assert final["host"] == ("egg" if host.is_egg() else "standin")
        assert 0 <= final["acc"] <= 1
        assert 0 <= final["acc_expected"] <= 1
        assert math.isfinite(final["loss"])
        assert 1 <= final["messages_used"] <= 20
        assert 1 <= final["support"] <= 20
        assert final["receiver_calls"] >= (final["support"] if "marg" in mode else 1)
        epochs = [json.loads(line) for line in lines[:-1] if line.startswith("{")]
        assert [(line["mode"], line["epoch"]) for line in epochs] == [
            ("train", 1),
            ("test", 1),
            ("train", 2),
            ("test", 2),
        ]
        assert host.describe() in lines[0]
        assert "warning" not in err

        opts = json.loads((tmp_path / "run/opts.json").read_text())
        assert opts["vocab_size"] == 20
        assert opts["random_seed"] == 3
        metrics = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
        assert [line["mode"] for line in metrics] == ["train", "validation"] * 2
        assert (tmp_path / "run/curves.png").read_bytes().startswith(b"\x89PNG")
        assert {path.name for path in (tmp_path / "run/checkpoints").iterdir()} == {"1.tar", "2.tar", "final.tar"}

        assert json.loads((tmp_path / "run/results.json").read_text()) == final
        files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        again = main(["--evaluate", "--load_from_checkpoint=run/checkpoints/final.tar"])
        assert {**again, "seconds": 0} == {**final, "seconds": 0}
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files

    @pytest.mark.slow
    def test_one_seed_one_result(self):
        results = [main([*SMALL, f"--random_seed={seed}", f"--out={i}"]) for i, seed in enumerate((5, 5, 6))]
        results = [{name: value for name, value in result.items() if name != "seconds"} for result in results]
        assert results[0] == results[1] != results[2]

    @pytest.mark.slow
    @pytest.mark.parametrize("mode", ["marg", "gs"])
    def test_a_resumed_run_sees_the_batches_of_the_whole_one(self, mode, tmp_path):
        """For marg, which draws nothing else, it ends with the same weights."""
        options = [f"--mode={mode}", *SMALL[1:], "--random_seed=5", "--lr_schedule=constant"]
        main([*options, "--n_epochs=3", "--out=whole", "--keep=3"])
        main([*options, "--n_epochs=3", "--out=resumed", "--load_from_checkpoint=whole/checkpoints/1.tar"])
        epochs = [json.loads(line)["epoch"] for line in (tmp_path / "resumed/metrics.jsonl").open()]
        assert epochs == [2, 2, 3, 3]
        whole, resumed = (checkpoints.read(f"{name}/checkpoints/final.tar") for name in ("whole", "resumed"))
        if mode == "marg":
            for name, value in whole.model_state_dict.items():
                torch.testing.assert_close(resumed.model_state_dict[name], value, atol=0, rtol=0, equal_nan=True)

    def test_preemptable(self, monkeypatch, tmp_path):
        """Started again with the same options, a job goes on from its last checkpoint, as with EGG's games."""
        monkeypatch.setenv("SLURM_JOB_ID", "17")
        options = ["--preemptable", "--checkpoint_freq=1", "--random_seed=5", "--lr_schedule=constant", *SMALL[1:]]
        main([*options, "--n_epochs=1", "--out=job"])
        main([*options, "--n_epochs=2", "--out=job"])
        epochs = [json.loads(line)["epoch"] for line in (tmp_path / "job/metrics.jsonl").open()]
        assert epochs == [1, 1, 2, 2]
        assert {path.name for path in (tmp_path / "job/checkpoints/17_0").iterdir()} == {"1.tar", "2.tar", "final.tar"}

    def test_preemptable_in_another_job(self, monkeypatch, tmp_path):
        """Submitted once more, with its run folder, a job finds what the one before has saved there."""
        options = ["--preemptable", "--random_seed=5", "--lr_schedule=constant", "--out=job", *SMALL[1:]]
        for job, n_epochs in (("17", 1), ("18", 2)):
            monkeypatch.setenv("SLURM_JOB_ID", job)
            main([*options, f"--n_epochs={n_epochs}"])
        epochs = [json.loads(line)["epoch"] for line in (tmp_path / "job/metrics.jsonl").open()]
        assert epochs == [1, 1, 2, 2]
        assert (tmp_path / "job/checkpoints/17_0/2.tar").is_file()

    @pytest.mark.slow
    def test_learns(self):
        final = main(["--n_epochs=4", "--random_seed=1", "--game_size=8"])
        assert final["acc"] > 0.6, "chance is 0.125"

    def test_latent_size_is_vocab_size(self):
        assert parse_options(["--latent_size=33"]).vocab_size == 33
        assert parse_options(["--latent_size=33", "--vocab_size=33"]).vocab_size == 33

    @pytest.mark.slow
    def test_the_line_of_the_official_readme(self):
        line = (
            "--mode marg --normalizer sparsemax --lr 0.005 --entropy_coeff 0.1 --batch_size 64 --n_epochs 500 "
            "--game_size 16 --latent_size 256 --embedding_size 256 --hidden_size 512 --weight_decay 0. --random_seed 42"
        )
        final = main([*line.replace("500", "1").split(), "--batches_per_epoch=2"])
        assert final["mode"] == "final"

    @pytest.mark.parametrize(
        ("params", "unused"),
        [
            (["--mode=marg", "--gs_tau=2", "--straight_through"], ["gs_tau", "straight_through"]),
            (["--mode=gs", "--normalizer=softmax", "--entropy_coeff=1"], ["entropy_coeff", "normalizer"]),
            (["--mode=sfe", "--temperature_decay=1", "--root=x"], ["root", "temperature_decay"]),
            (
                ["--mode=marg", "--baseline_type=none", "--loss_type=acc", "--cell=rnn", "--length_cost=1"],
                ["baseline_type", "cell", "length_cost", "loss_type"],
            ),
            (["--mode=sfe", "--baseline_type=none"], []),
            (["--mode=sfe", "--max_len=2", "--cell=rnn", "--length_cost=1", "--tau_s=3"], ["temperature"]),
            (["--mode=marg", "--max_len=2", "--max_support=3", "--tau_s=3"], []),
            (["--data=npz", "--root=a.npz", "--pixels=brightness"], ["pixels"]),
        ],
    )
    def test_unused_flags_draw_one_warning_each(self, params, unused, capsys):
        parse_options(params)
        err = capsys.readouterr().err
        assert sorted(re.findall(r"warning: --(\w+) has no effect", err)) == unused

    def test_help_says_the_defaults_that_hold(self, capsys):
        with pytest.raises(SystemExit):
            parse_options(["--help"])
        text = " ".join(capsys.readouterr().out.split())
        defaults = vars(parse_options([]))
        for name in ("lr", "n_epochs", "batch_size", "vocab_size", "game_size"):
            said = re.search(rf"--{name} [NX] .*?\(default: ([^)]*)\)", text)
            assert float(said[1]) == defaults[name]


SEQUENCE_MODES = {
    "marg": ["--mode=marg"],
    "marg transformer": ["--mode=marg", "--cell=transformer", "--normalizer=softmax", "--max_support=3"],
    "sfe": ["--mode=sfe"],
    "sfe transformer": ["--mode=sfe", "--cell=transformer", "--baseline_type=none", "--length_cost=0.1"],
    "gs": ["--mode=gs", "--temperature_update_freq=2", "--temperature_decay=0.1"],
    "gs lstm": ["--mode=gs", "--cell=lstm", "--straight_through", "--sender=paper"],
}


@pytest.mark.usefixtures("few_test_games")
@pytest.mark.slow
class TestSeveralSymbols:
    PARAMS = (*SMALL, "--vocab_size=5", "--max_len=2", "--embedding_size=8", "--hidden_size=8", "--no_cuda")

    @pytest.mark.parametrize("mode", SEQUENCE_MODES)
    def test_every_mode(self, mode, tmp_path, capsys):
        final = main([*self.PARAMS, *SEQUENCE_MODES[mode], "--out=run", "--random_seed=3"])
        out, err = capsys.readouterr()
        assert json.loads(out.splitlines()[-1]) == final
        of_sums = {"acc_expected", "support", "exact"} if "marg" in mode else set()
        assert set(final) == of_sums | {
            "mode", "acc", "loss", "length", "messages_used", "receiver_calls", "seconds", "host", "device",
        }  # fmt: skip
        assert "warning" not in err
        assert 0 <= final["length"] <= 2
        metrics = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
        assert [line["mode"] for line in metrics] == ["train", "validation"] * 2
        assert (tmp_path / "run/curves.png").read_bytes().startswith(b"\x89PNG")
        again = main(["--evaluate", "--load_from_checkpoint=run/checkpoints/final.tar", "--no_cuda"])
        assert {**again, "seconds": 0} == {**final, "seconds": 0}

    @pytest.mark.parametrize("mode", ["marg transformer", "sfe", "gs"])
    def test_a_resumed_run_equals_the_whole_one(self, mode, tmp_path):
        options = [*self.PARAMS, *SEQUENCE_MODES[mode], "--random_seed=3", "--lr_schedule=constant"]
        main([*options, "--n_epochs=3", "--out=whole", "--keep=3"])
        main([*options, "--n_epochs=3", "--out=cut", "--load_from_checkpoint=whole/checkpoints/2.tar"])
        metrics = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "cut")]
        assert metrics[0][4:] == metrics[1]

    @pytest.mark.parametrize("mode", ["marg", "sfe", "gs"])
    def test_test_equals_playing_one_game_after_the_other(self, mode):
        opts = parse_options([*self.PARAMS, *SEQUENCE_MODES[mode]])
        images = data.load("digits", None, "data", False)
        game, loader = train.build_sequence_game(opts, images.n_features), train.build_loaders(opts, images)["test"]
        with torch.no_grad():
            for parameter in game.parameters():
                parameter.mul_(2)
        found = train.evaluate_sequences(opts, game, loader, torch.device("cpu"))
        game.eval()
        right, losses, messages = [], [], []
        with torch.no_grad():
            for sender_input, labels, receiver_input in loader:
                for image, label, candidates in zip(sender_input, labels, receiver_input, strict=True):
                    message = game.sender(image[None])
                    symbols = (message.argmax(-1) if mode == "gs" else message[0])[0].tolist()
                    end = symbols.index(0)
                    if mode == "gs":
                        output = game.receiver(message, candidates[None])[0, end]
                    else:
                        output = game.receiver(message[0], candidates[None])[0][0]
                    right.append(float(output.argmax() == label))
                    losses.append(-float(output[label]))
                    messages.append(tuple(symbols[:end]))
        assert len(right) == 64
        assert found["acc"] == pytest.approx(sum(right) / 64)
        if mode != "marg":  # whose loss is the expected one
            assert found["loss"] == pytest.approx(sum(losses) / 64, rel=1e-5)
        assert found["length"] == pytest.approx(sum(map(len, messages)) / 64)
        assert found["messages_used"] == len(set(messages))

    def test_images_come_batch_first(self):
        images = data.load("digits", None, "data", False).train
        loaders_ = [data.GameLoader(images, 3, 8, 2, seed=1, batch_first=first) for first in (False, True)]
        for one, other in zip(*loaders_, strict=True):
            assert torch.equal(one[0].transpose(0, 1), other[0])
            assert torch.equal(one[1], other[1])
            assert torch.equal(one[2].transpose(0, 1), other[2])


class TestCommand:
    """As typed: one sentence on standard error, no traceback, a status that says so."""

    @pytest.fixture
    def refuses(self, capsys):
        def run_and_read(sentence, *params, status=1):
            capsys.readouterr()
            assert run(PROG, main, list(params)) == status
            err = capsys.readouterr().err
            assert "Traceback" not in err
            assert err.splitlines()[-1].startswith("egg_sparse.zoo.signal_game: error: ")
            assert re.search(sentence, err.splitlines()[-1])

        return run_and_read

    @pytest.mark.slow
    def test_as_a_process(self):
        result = command("--mode=margg")
        assert result.returncode == 2
        assert result.stdout == ""
        assert result.stderr.startswith("egg_sparse.zoo.signal_game: error: argument --mode: invalid choice: 'margg'")
        result = command("--data=npz", "--root=no.npz")
        assert result.returncode == 1
        assert result.stderr == "egg_sparse.zoo.signal_game: error: --root: there is no file no.npz\n"

    @pytest.mark.slow
    def test_a_host_that_cannot_be_had(self):
        result = command(EGG_SPARSE_HOST="eggs")
        assert result.returncode == 1
        assert result.stderr == (
            'egg_sparse.zoo.signal_game: error: EGG_SPARSE_HOST must be "egg" or "standin", got \'eggs\'\n'
        )

    @pytest.mark.slow
    def test_runs_and_ends_with_one_json_object(self, tmp_path):
        result = command(*SMALL, "--random_seed=1")
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout.splitlines()[-1])["mode"] == "final"
        (folder,) = (tmp_path / "runs/signal_game").iterdir()
        assert folder.name.startswith("marg-1-")

    @pytest.mark.slow
    def test_terminal(self):
        pytest.importorskip("pty")
        import pty

        leader, follower = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "egg_sparse.zoo.signal_game", *SMALL],
            stdout=follower,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "150"},
        )
        os.close(follower)
        shown = b""
        while True:
            try:
                part = os.read(leader, 65536)
            except OSError:
                break
            if not part:
                break
            shown += part
        assert process.wait() == 0
        text = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", shown.decode())
        assert "epoch 2/2" in text
        assert "acc" in text
        assert json.loads(text.strip().splitlines()[-1])["mode"] == "final"

    @pytest.mark.parametrize(
        ("params", "sentence"),
        [
            (["--no_such_flag"], "unrecognized arguments: --no_such_flag"),
            (["--mode=margg"], "argument --mode: invalid choice: 'margg'"),
            (["--norm=softmaxx"], "--normalizer.*'softmaxx'"),
            (["--r=7"], "ambiguous.*--r=7.*--resume.*--random_seed"),
            (["--normalizer=0.5"], "argument --normalizer: expected sparsemax, softmax, entmax15 or a number above 1"),
            (["--game_size=0"], "--game_size.*'0'"),
            (["--tau_s=nan"], "--tau_s.*'nan'"),
            (["--batch_size=0"], "--batch_size.*'0'"),
            (
                ["--random_seed=-1"],
                "--random_seed.*'-1'",
            ),
            (["--update_freq=0"], "--update_freq.*'0'"),
            (["--evaluate", "--load_from_checkpoint"], "--load_from_checkpoint.*expected one argument"),
            (["--lr=-1"], "--lr.*'-1'"),
            (["--optimizer=rmsprop"], "--optimizer.*'rmsprop'"),
            (["--latent_size=3", "--vocab_size=4"], "--latent_size.* --vocab_size.* 3 .*4"),
            (["--evaluate"], "--evaluate.* --load_from_checkpoint"),
            (["--max_len=2", "--mode=nvil"], "--max_len.* nvil.*got 2"),
            (["--max_len=2", "--mode=sumsample"], "--max_len.* sumsample.*got 2"),
            (["--max_len=2", "--mode=sfe", "--baseline_type=sample"], "--baseline_type.*got sample"),
            (["--max_len=2", "--mode=sfe", "--loss_type=acc"], "--loss_type.*got acc"),
            (["--max_len=2", "--mode=gs", "--cell=transformer"], "--cell.* gs.*got transformer"),
            (["--max_len=2", "--cell=transformer", "--embedding_size=6"], "--embedding_size.* 4 .*got 6"),
            (["--max_len=0"], "--max_len.*'0'"),
        ],
    )
    def test_wrong_options(self, refuses, params, sentence):
        refuses(sentence, *params, status=2)

    def test_wrong_inputs(self, refuses, tmp_path):
        (tmp_path / "file").write_text("")
        refuses("--game_size.* 143.* 2000", "--game_size=2000")
        refuses("--root.* no.npz", "--data=npz", "--root=no.npz")
        refuses("--out.* file/run", "--out=file/run")
        (tmp_path / "used").mkdir()
        (tmp_path / "used/opts.json").write_text("{}")
        refuses("--out.* used.* run already", "--out=used")
        refuses("no checkpoint.* no.tar", "--load_from_checkpoint=no.tar")
        refuses("no checkpoint.* no.tar", "--evaluate", "--load_from_checkpoint=no.tar")
        with zipfile.ZipFile("other.tar", "w") as archive:
            archive.writestr("text", "not a checkpoint")
        refuses("other.tar.* checkpoint", "--load_from_checkpoint=other.tar")
        refuses("opts.json.* other.tar", "--evaluate", "--load_from_checkpoint=other.tar")

    def test_checkpoint_of_another_architecture(self, refuses, few_test_games, tmp_path):
        main([*SMALL, "--out=run"])
        refuses(
            r"sender.agent.hidden.weight.*\(128, 64\).*\(32, 64\)",
            *SMALL, "--hidden_size=32", "--load_from_checkpoint=run/checkpoints/final.tar",
        )  # fmt: skip
        (tmp_path / "run/opts.json").write_text("[1, 2")
        refuses("opts.json.* JSON", "--evaluate", "--load_from_checkpoint=run/checkpoints/final.tar")
        (tmp_path / "run/opts.json").write_text('{"no_such_option": 1}')
        refuses(
            "--no_such_option=1",
            "--evaluate", "--load_from_checkpoint=run/checkpoints/final.tar", status=2,
        )  # fmt: skip

    @pytest.mark.parametrize(
        ("module", "package"), [("sklearn.datasets", "scikit-learn"), ("matplotlib.figure", "matplotlib")]
    )
    def test_missing_extras(self, refuses, monkeypatch, tmp_path, module, package):
        monkeypatch.setitem(sys.modules, module, None)
        refuses(rf"{package}.*egg_sparse\[zoo\]")
        assert not (tmp_path / "runs").exists(), "found before training"

    @pytest.mark.usefixtures("few_test_games")
    def test_no_epochs(self):
        assert main(["--n_epochs=0"])["messages_used"] >= 1

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
    def test_full_disk(self, refuses, monkeypatch):
        save = torch.save
        monkeypatch.setattr(torch, "save", lambda value, path: save(value, "/dev/full"))
        refuses("cannot write a checkpoint to out/checkpoints: is the disk full?", *SMALL, "--out=out")

    def test_debug_shows_the_traceback(self, capsys):
        assert run(PROG, main, ["--data=npz", "--root=no.npz", "--debug"]) == 1
        assert "Traceback" in capsys.readouterr().err

    @pytest.mark.slow
    def test_interrupt(self):
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "egg_sparse.zoo.signal_game", "--n_epochs=1000"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs may ignore it
        )
        for line in process.stdout:
            if line.startswith("{"):
                process.send_signal(signal.SIGINT)
                break
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "Traceback" not in err
        assert (
            err.strip()
            .splitlines()[-1]
            .startswith("egg_sparse.zoo.signal_game: interrupted; python -m egg_sparse.zoo.signal_game --resume ")
        )
