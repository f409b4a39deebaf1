"""The semi-supervised VAE: its data, its losses, and runs of every mode, as a user starts them."""

import functools
import json
import math
import re
import subprocess
import sys

import entmax
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from egg_sparse.zoo.cli import run
from egg_sparse.zoo.semi_supervised_vae import data
from egg_sparse.zoo.semi_supervised_vae.archs import Classifier, GaussianVAE, LinearOfClass, negative_elbo
from egg_sparse.zoo.semi_supervised_vae.games import build_game, classification_loss, in_next_call
from egg_sparse.zoo.semi_supervised_vae.train import (
    PROG,
    build_loaders,
    evaluate,
    main,
    parse_options,
    play_as_trained,
)

slow = functools.partial(pytest.param, marks=pytest.mark.slow)
SMALL = ["--n_epochs=2", "--n_labeled=20", "--warm_start_epochs=0"]


@pytest.fixture
def few_images(monkeypatch):
    whole = data.load("digits", "", None)
    parts = (images.take(np.arange(90)) for images in (whole.labeled, whole.unlabeled, whole.validation, whole.test))
    part = data.Split(*parts)
    monkeypatch.setattr(data, "load", lambda *_: part)


class TestData:
    def test_papers_split(self):
        labeled, unlabeled, validation = data.papers_split()
        assert labeled[:5].tolist() == [45872, 27715, 13311, 26431, 2426]
        assert (len(labeled), len(unlabeled), len(validation)) == (5_000, 45_000, 10_000)
        assert sorted([*labeled, *unlabeled, *validation]) == list(range(60_000))

    def test_digits(self):
        split = data.load("digits", "", None)
        parts = (split.labeled, split.unlabeled, split.validation, split.test)
        assert [len(part) for part in parts] == [100, 1159, 179, 359]
        assert len(data.load("digits", "", 300).labeled) == 300

    def test_binarized_pixels_are_on_in_proportion(self):
        pixels = np.tile(np.array([0, 4, 8, 16], dtype=np.uint8), (20_000, 1))
        mean = data.binarized(pixels, 17, np.random.default_rng(0)).mean(0)
        torch.testing.assert_close(mean, torch.tensor([0, 0.25, 0.5, 1.0]), atol=0.02, rtol=0)

    def test_loader(self):
        split = data.load("digits", "", None)
        loader = data.SemiSupervisedLoader(split.unlabeled, split.labeled, 64, seed=1)
        first, second = list(loader), list(loader)
        assert len(first) == len(loader) == 19
        images, classes, again, labeled = first[0]
        assert images is again
        assert images.shape == labeled["images"].shape == (64, 64)
        assert set(images.unique().tolist()) == {0.0, 1.0}
        assert not torch.equal(images, second[0][0])
        loader.set_epoch(1)
        assert torch.equal(next(iter(loader))[0], images)
        seen = torch.cat([batch[1] for batch in first]).bincount()
        assert torch.equal(seen, torch.from_numpy(split.unlabeled.classes).bincount())
        assert classes.dtype == torch.long


class TestAgents:
    def test_ids_and_rows_are_the_same_class(self):
        layer = LinearOfClass(6, 3, 4)
        features, classes = torch.randn(5, 6), torch.tensor([0, 2, 1, 1, 0])
        one_hot = F.one_hot(classes, 3).float()
        together = F.linear(torch.cat((features, one_hot), 1), layer.weight, layer.bias)
        torch.testing.assert_close(layer(features, classes), together)
        torch.testing.assert_close(layer(features, one_hot), together)
        with pytest.raises(RuntimeError, match="smaller than num_classes"):
            layer(features, classes + 1)

    def test_negative_elbo(self):
        images = torch.randint(0, 2, (3, 7)).double()
        output = torch.randn(3, 7 + 4, dtype=torch.float64)
        log_odds, mean, log_deviation = output[:, :7], output[:, 7:9], output[:, 9:]
        prior = torch.distributions.Normal(0.0, 1.0)
        posterior = torch.distributions.Normal(mean, log_deviation.exp())
        expected = -torch.distributions.Bernoulli(logits=log_odds).log_prob(images).sum(1)
        expected += torch.distributions.kl_divergence(posterior, prior).sum(1)
        torch.testing.assert_close(negative_elbo(output, images, 2), expected)

    @pytest.mark.parametrize("normalizer", ["softmax", "sparsemax", "entmax15"])
    def test_classification_loss_pulls_the_normalizer_to_the_class(self, normalizer):
        from egg_sparse.mappings import categorical

        scores, classes = torch.randn(4, 10, requires_grad=True), torch.tensor([1, 5, 5, 9])
        (grad,) = torch.autograd.grad(classification_loss(normalizer)(scores, classes).sum(), scores)
        distribution = getattr(categorical, normalizer)(scores)
        probs = torch.zeros(4, 10).scatter_add_(1, distribution.messages.t(), distribution.probs.t())
        torch.testing.assert_close(grad, probs - F.one_hot(classes, 10), atol=1e-5, rtol=1e-4)

    def test_loss_is_the_sum_over_all_classes(self):
        torch.manual_seed(0)
        split = data.load("digits", "", 50)
        opts = parse_options(["--normalizer=softmax", "--random_seed=1", "--no_cuda", "--n_labeled=50"])
        game = build_game(opts, split)
        game.vae.forward = self.without_noise(game.vae)
        batch = next(iter(data.SemiSupervisedLoader(split.unlabeled, split.labeled, 8, seed=1)))
        loss, interaction = game(*batch)
        images, _, _, labeled = batch
        probs = game.classifier(images).softmax(1)
        elbos = torch.stack([negative_elbo(game.vae(torch.full((8,), c), images), images, 8) for c in range(10)], 1)
        unlabeled_loss = ((probs * elbos).sum(1) + (probs * probs.log()).sum(1)).mean()
        labeled_loss = negative_elbo(game.vae(labeled["classes"], labeled["images"]), labeled["images"], 8)
        labeled_loss += F.cross_entropy(game.classifier(labeled["images"]), labeled["classes"], reduction="none")
        expected = labeled_loss.mean() + len(split.unlabeled) / 50 * unlabeled_loss
        torch.testing.assert_close(loss, expected)
        assert interaction.aux["labeled_loss"].shape == (8,)
        assert (interaction.aux["receiver_calls"] == 10).all()

    @pytest.mark.parametrize("rows", [False, True])
    def test_next_call_takes_a_labeled_batch_as_well(self, rows):
        torch.manual_seed(0)
        vae = GaussianVAE(6)
        vae.forward = self.without_noise(vae)
        images, classes = torch.rand(3, 6), torch.tensor([4, 0, 9])
        of_labeled, labels = torch.rand(2, 6), torch.tensor([1, 2])
        message = F.one_hot(classes, 10).float() if rows else classes
        calls = []
        vae.read_image.register_forward_hook(lambda _layer, inputs, _output: calls.append(len(inputs[0])))
        with in_next_call(vae, labels, of_labeled) as outputs:
            own = vae(message, images, None)
            again = vae(message, images, None)
        torch.testing.assert_close(own, vae(classes, images))
        torch.testing.assert_close(outputs, [vae(labels, of_labeled)])
        torch.testing.assert_close(again, own)
        assert calls == [5, 3, 3, 2]
        with pytest.raises(RuntimeError, match="stop"), in_next_call(vae, labels, of_labeled) as outputs:
            raise RuntimeError("stop")
        vae(message, images)
        assert calls[-1] == 3
        assert outputs == []

    @staticmethod
    def without_noise(vae: GaussianVAE):
        def forward(message, images, aux_input=None):
            encoded = vae.encode(vae.read_image(images, message))
            mean, _ = encoded.chunk(2, dim=-1)
            return torch.cat((vae.decode(vae.read_latent(mean, message)), encoded), -1)

        return forward


@pytest.mark.parametrize(
    "options",
    [
        ["--mode=marg"],
        slow(["--mode=marg", "--normalizer=softmax", "--temperature=2"]),
        slow(["--mode=marg", "--normalizer=entmax15", "--warm_start_epochs=2"]),
        slow(["--mode=marg", "--labeled_only"]),
        ["--mode=sumsample", "--max_support=2"],
        slow(["--mode=sumsample", "--normalizer=sparsemax"]),
        slow(["--mode=sfe"]),
        slow(["--mode=sfe", "--baseline_type=sample"]),
        ["--mode=nvil"],
        ["--mode=gs"],
        slow(["--mode=gs", "--straight_through"]),
    ],
    ids=" ".join,
)
def test_runs(options, few_images, tmp_path, capsys):
    final = main([*SMALL, *options, "--random_seed=1", "--out=run", "--no_cuda"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == final
    assert 0 <= final["acc"] <= 1
    assert math.isfinite(final["negative_elbo"])
    files = {path.name for path in (tmp_path / "run").iterdir()}
    pictures = {"curves.png", "reconstructions.png", "samples.png"}
    assert files == {"checkpoints", "costs.jsonl", "metrics.jsonl", "opts.json", "results.json", *pictures}
    assert json.loads((tmp_path / "run/results.json").read_text()) == final
    assert ("exact" in final) == (options[0] in ("--mode=marg", "--mode=sumsample"))
    again = main(["--evaluate", "--load_from_checkpoint=run/checkpoints/final.tar"])
    assert again["acc"] == final["acc"]
    assert again["negative_elbo"] == pytest.approx(final["negative_elbo"])


@pytest.mark.parametrize("mode", ["marg", "sumsample", "sfe", "gs"])
def test_validation_reports_what_is_trained(mode):
    """Beside the most probable class: the probability of the right class, and the exact negative ELBO."""
    torch.manual_seed(0)
    opts = parse_options([f"--mode={mode}", "--random_seed=1", "--no_cuda"])
    split = data.load("digits", "", None)
    game, loader = build_game(opts, split), build_loaders(opts, split)["validation"]
    with torch.no_grad():
        game.classifier.layers[-1].weight.mul_(200)  # surer of a class
        images, classes, _ = next(iter(loader))
        scores = game.classifier(images)
    found = play_as_trained(game, loader, opts.device)
    probs = entmax.sparsemax(scores, -1) if mode == "marg" else scores.softmax(-1)
    right = probs.gather(1, classes[:, None])[:, 0]
    if mode in ("marg", "sumsample"):
        torch.testing.assert_close(found["acc_expected"], right)
    else:
        assert set(found["acc_expected"].tolist()) == {0.0, 1.0}
        deviation = float((right * (1 - right)).sum()) ** 0.5 / len(classes)
        assert float(found["acc_expected"].mean()) == pytest.approx(float(right.mean()), abs=4 * deviation)
    exact = evaluate(opts, game, loader)
    assert exact["sender_entropy"] < 1.3, "far from the uniform distribution's 2.3"
    assert float(found["negative_elbo"].mean()) == pytest.approx(exact["negative_elbo"], abs=0.5)
    assert game.game.evaluation == "greedy"


@pytest.mark.parametrize("mode", ["marg", "sumsample"])
def test_exact_is_the_share_of_supports_that_training_sums(mode):
    torch.manual_seed(0)
    opts = parse_options(
        [f"--mode={mode}", "--normalizer=sparsemax", "--max_support=2", "--random_seed=1", "--no_cuda"]
    )
    split = data.load("digits", "", None)
    game, loader = build_game(opts, split), build_loaders(opts, split)["test"]
    with torch.no_grad():
        game.classifier.layers[-1].weight.mul_(200)
        supports = torch.cat([(entmax.sparsemax(game.classifier(batch[0]), -1) > 0).sum(-1) for batch in loader])
    share = float((supports <= 2).float().mean())
    assert 0 < share < 1
    assert evaluate(opts, game, loader)["exact"] == pytest.approx(1 if mode == "marg" else share)


def test_metrics_of_validation(few_images, tmp_path):
    main([*SMALL, "--random_seed=1", "--out=run", "--no_cuda"])
    *_, trained, validated = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
    assert {"acc", "acc_expected", "negative_elbo", "conditional_elbo_loss", "sender_entropy"} <= set(validated)
    expected = trained["conditional_elbo_loss"] - trained["sender_entropy"] + math.log(10)
    assert trained["negative_elbo"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_warm_start_of_another_mode(few_images):
    main([*SMALL, "--labeled_only", "--random_seed=1", "--out=warm", "--no_cuda"])
    before = main(["--evaluate", "--load_from_checkpoint=warm/checkpoints/final.tar"])
    options = ["--mode=nvil", "--n_epochs=0", "--warm_start_path=warm/checkpoints/final.tar", "--no_cuda"]
    after = main([*options, "--random_seed=2", "--out=run"])
    assert after["acc"] == before["acc"]


@pytest.mark.slow
def test_learns():
    options = ["--n_epochs=10", "--random_seed=1", "--no_cuda", "--out=run"]
    final = main(options)
    assert final["acc"] > 0.8
    assert final["negative_elbo"] < 27


@pytest.mark.slow
def test_one_seed_one_result(few_images):
    finals = [main([*SMALL, "--mode=gs", "--random_seed=4", f"--out=run{i}", "--no_cuda"]) for i in range(2)]
    assert finals[0]["negative_elbo"] == finals[1]["negative_elbo"]


@pytest.mark.parametrize(
    ("params", "status", "message"),
    [
        (["--mode=sparsemap"], 2, "invalid choice: 'sparsemap'"),
        (["--mode=gs", "--normalizer=sparsemax"], 2, "--normalizer.*softmax.*gs.*sparsemax"),
        (["--n_labeled=5000"], 1, "--n_labeled.*1259.*5000"),
        (["--warm_start_path=nowhere.tar"], 1, "checkpoint.*nowhere.tar"),
        (["--data=mnist", "--data_root=/dev/null"], 1, "--data_root.*MNIST.*/dev/null"),
    ],
)
def test_refuses(params, status, message, capsys):
    assert run(PROG, main, [*params, "--no_cuda"]) == status
    assert re.search(message, capsys.readouterr().err)


def test_refuses_a_warm_start_of_other_sizes(few_images, capsys, monkeypatch):
    main([*SMALL, "--labeled_only", "--random_seed=1", "--out=warm", "--no_cuda"])
    monkeypatch.setattr(
        "egg_sparse.zoo.semi_supervised_vae.games.Classifier", lambda n, c: Classifier(n, c, hidden_size=32)
    )
    assert run(PROG, main, ["--warm_start_path=warm/checkpoints/final.tar", "--no_cuda"]) == 1
    assert "is of another architecture: layers.0.weight is (256, 64) there and (32, 64) here" in capsys.readouterr().err


@pytest.mark.slow
def test_as_a_command():
    command = [sys.executable, "-m", "egg_sparse.zoo.semi_supervised_vae", *SMALL, "--n_epochs=1", "--no_cuda"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["mode"] == "final"
