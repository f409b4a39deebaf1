"""The bit-vector VAE: its likelihood, its estimates, and runs of every mode, as a user starts them."""

import functools
import itertools
import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from egg_sparse import SparseMAPBitVectorWrapper, TopKSparsemaxWrapper
from egg_sparse.estimators import BitVectors
from egg_sparse.zoo.bit_vector_vae import data
from egg_sparse.zoo.bit_vector_vae.archs import Generator
from egg_sparse.zoo.bit_vector_vae.distortion import LOGITS_AT_A_TIME, categorical_distortion
from egg_sparse.zoo.bit_vector_vae.likelihood import log_likelihood
from egg_sparse.zoo.bit_vector_vae.train import PROG, build_vae, evaluate, main, parse_options
from egg_sparse.zoo.cli import run
from egg_sparse.zoo.methods import linear

slow = functools.partial(pytest.param, marks=pytest.mark.slow)
SMALL = ["--n_epochs=2", "--latent_size=6", "--nll_samples=8", "--nll_images=20", "--validation_nll_samples=2"]


@pytest.fixture
def few_images(monkeypatch):
    whole = data.load("digits", "")
    part = data.Split(*(images.take(np.arange(96)) for images in (whole.train, whole.validation, whole.test)))
    monkeypatch.setattr(data, "load", lambda *_: part)


class TestDistortion:
    def plainly(self, features, weight, bias, levels):
        log_probs = F.log_softmax(features @ weight.t() + bias, -1)
        return -log_probs.gather(-1, levels.long()[..., None])[..., 0].sum(-1)

    @pytest.mark.parametrize("at_a_time", [1, 50, 2**20])
    def test_equals_the_plain_one(self, at_a_time, monkeypatch):
        monkeypatch.setitem(LOGITS_AT_A_TIME, "cpu", at_a_time)
        inputs = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((7, 6, 3), (9, 3), (9,))]
        levels, weights = torch.randint(0, 9, (7, 6), dtype=torch.uint8), torch.randn(7, dtype=torch.float64)
        results = [function(*inputs, levels) for function in (categorical_distortion, self.plainly)]
        torch.testing.assert_close(*results)
        grads = [torch.autograd.grad((result * weights).sum(), inputs) for result in results]
        for ours, plain in zip(*grads, strict=True):
            torch.testing.assert_close(ours, plain)

    def test_gradients(self):
        inputs = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 2), (4, 2), (4,))]
        levels = torch.randint(0, 4, (2, 3))
        assert torch.autograd.gradcheck(lambda *values: categorical_distortion(*values, levels), inputs)

    def test_large_logits_and_no_messages(self):
        features = torch.full((1, 2, 1), 1e4, requires_grad=True)
        weight = torch.tensor([[1.0], [-1.0]])
        distortion = categorical_distortion(features, weight, torch.zeros(2), torch.tensor([[0, 1]]))
        assert distortion.item() == 2e4
        distortion.backward()
        assert torch.isfinite(features.grad).all()
        empty = categorical_distortion(torch.zeros(0, 2, 1), weight, torch.zeros(2), torch.zeros(0, 2).long())
        assert empty.shape == (0,)


class TestLikelihood:
    """Of a model of 8 bits, whose sum can be had."""

    @pytest.fixture
    def model(self):
        torch.manual_seed(0)
        generator = Generator(8, 5, 4, hidden_size=16, rank=3).double()
        for parameter in generator.parameters():
            parameter.data.mul_(3)
        levels = torch.randint(0, 4, (6, 5))

        def log_prob_given(messages):
            rows, batch = messages.shape[:2]
            features = generator(messages.flatten(0, 1))
            pairs = levels.expand(rows, batch, 5).flatten(0, 1)
            parts = generator.levels.weight, generator.levels.bias
            return -categorical_distortion(features, *parts, pairs).detach().view(rows, batch)

        everything = torch.tensor(list(itertools.product([0.0, 1.0], repeat=8)), dtype=torch.float64)
        exact = (log_prob_given(everything[:, None].expand(-1, 6, -1)) - 8 * math.log(2)).logsumexp(0)
        return log_prob_given, exact

    @pytest.fixture(params=["systematic", "active_set", "top-k", "one vector", "bits"])
    def distribution(self, request):
        scores = 0.8 * torch.randn(6, 8, dtype=torch.float64)
        if request.param == "bits":
            return BitVectors(scores)
        if request.param == "top-k":
            return TopKSparsemaxWrapper(lambda x: x, k=10, support=None)(scores)
        if request.param == "one vector":
            scores = 10 * scores.sign()
        decomposition = request.param if request.param == "active_set" else "systematic"
        return SparseMAPBitVectorWrapper(lambda x: x, decomposition=decomposition, support=None)(scores)

    @pytest.mark.slow
    def test_disjoint_converges_to_the_exact_sum(self, model, distribution):
        log_prob_given, exact = model
        torch.manual_seed(1)
        estimate = log_likelihood(log_prob_given, distribution, 60_000, samples_at_a_time=20_000)
        # the sum is dominated by rare samples where the sender is sure of the wrong bits
        torch.testing.assert_close(estimate, exact, atol=0.5, rtol=0)
        assert (estimate - exact).abs().median() < 0.1

    @pytest.mark.slow
    def test_disjoint_is_a_lower_bound_in_expectation(self, model, distribution):
        log_prob_given, exact = model
        torch.manual_seed(1)
        estimates = torch.stack([log_likelihood(log_prob_given, distribution, 4) for _ in range(300)])
        error = estimates.std(0) / 300**0.5
        assert (estimates.mean(0) <= exact + 4 * error).all()

    @pytest.mark.slow
    def test_papers_counts_the_support_twice(self, model):
        log_prob_given, exact = model
        torch.manual_seed(1)
        distribution = TopKSparsemaxWrapper(lambda x: x, k=200, support=None)(
            0.01 * torch.randn(6, 8, dtype=torch.float64)
        )
        paper, disjoint = (
            log_likelihood(log_prob_given, distribution, 20_000, name, samples_at_a_time=20_000)
            for name in ("paper", "disjoint")
        )
        on_support = torch.where(
            distribution.mask, log_prob_given(distribution.messages) - 8 * math.log(2), -math.inf
        ).logsumexp(0)
        torch.testing.assert_close(paper, torch.logaddexp(exact, on_support), atol=0.1, rtol=0)
        assert (paper > exact + 0.3).any()
        torch.testing.assert_close(disjoint, exact, atol=0.3, rtol=0)

    def test_refuses(self, model):
        with pytest.raises(ValueError, match=r"estimate.*'mine'"):
            log_likelihood(model[0], BitVectors(torch.zeros(6, 8)), 4, "mine")


class TestData:
    def test_split(self):
        split = data.load("digits", "")
        assert [len(part) for part in (split.train, split.validation, split.test)] == [1258, 180, 359]
        assert split.train.pixels.max() == 16
        assert split.train.levels == 17

    def test_loader(self):
        source = data.load("digits", "").validation
        loader = data.ImageLoader(source, 50, seed=3)
        assert len(loader) == 4
        first, second = list(loader), list(loader)
        assert [len(batch[0]) for batch in first] == [50, 50, 50, 30]
        assert not torch.equal(first[0][1], second[0][1])
        loader.set_epoch(1)
        assert torch.equal(next(iter(loader))[1], first[0][1])
        pixels, levels = first[0]
        torch.testing.assert_close(pixels * 16, levels.float())
        fixed = data.ImageLoader(source, 50, fixed=True)
        assert torch.equal(next(iter(fixed))[1], torch.from_numpy(source.pixels[:50]))


def test_linear_ends_where_it_should():
    schedule = linear(10, 1, 4)
    assert [schedule(epoch) for epoch in (1, 2, 4, 9)] == [10, 7, 1, 1]
    assert linear(10, 1, 1)(1) == 1


@pytest.mark.parametrize(
    "options",
    [
        ["--mode=sparsemap"],
        slow(["--mode=sparsemap", "--decomposition=threshold", "--temperature=4", "--temperature_end=1"]),
        slow(["--mode=sparsemap", "--decomposition=active_set", "--budget=2"]),
        slow(["--mode=sparsemap", "--max_support=2", "--entropy_warmup=1", "--entropy_start=5"]),
        ["--mode=topksparse", "--topksparse=5", "--nll=paper"],
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
    assert all(math.isfinite(final[name]) for name in ("negative_elbo", "rate", "distortion", "bits_per_dimension"))
    assert final["negative_elbo"] == pytest.approx(final["rate"] + final["distortion"])
    sparse = options[0] in ("--mode=sparsemap", "--mode=topksparse")
    assert ("support" in final) == ("exact" in final) == sparse
    files = {path.name for path in (tmp_path / "run").iterdir()}
    pictures = {"curves.png", "reconstructions.png", "samples.png"} | ({"supports.png"} if sparse else set())
    assert files == {"checkpoints", "costs.jsonl", "metrics.jsonl", "opts.json", "results.json", *pictures}
    assert json.loads((tmp_path / "run/results.json").read_text()) == final
    metrics = [json.loads(text) for text in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert {record["mode"] for record in metrics} == {"train", "validation"}
    assert "bits_per_dimension" in metrics[-1]
    again = main(["--evaluate", "--load_from_checkpoint=run/checkpoints/final.tar"])
    for name in ("negative_elbo", "distortion", "bits_per_dimension", "receiver_calls"):
        assert again[name] == pytest.approx(final[name])


@pytest.mark.slow
def test_learns(tmp_path):
    final = main(["--n_epochs=15", "--random_seed=1", "--out=run", "--no_cuda", "--nll_images=20", "--nll_samples=64"])
    assert final["distortion"] < 105
    assert final["bits_per_dimension"] < 2.5
    assert final["bits_per_dimension"] * 64 * math.log(2) <= final["negative_elbo"] + 5


@pytest.mark.slow
def test_one_seed_one_result(few_images):
    finals = [main([*SMALL, "--random_seed=4", f"--out=run{i}", "--no_cuda"]) for i in range(2)]
    assert finals[0]["negative_elbo"] == finals[1]["negative_elbo"]


def test_budget_holds():
    opts = parse_options(["--budget=2", "--latent_size=6", "--random_seed=1", "--no_cuda"])
    distribution = build_vae(opts, 64, 17).distribution(torch.rand(5, 64))
    assert (distribution.messages[distribution.mask].sum(-1) <= 2).all()


@pytest.mark.parametrize("max_support", [None, 4])
def test_exact_is_the_share_of_supports_that_training_sums(max_support):
    """The support of SparseMAP's systematic messages: where their breakpoints lie, and 0."""
    bound = [] if max_support is None else [f"--max_support={max_support}"]
    options = ["--latent_size=8", "--nll_images=5", "--nll_samples=2", "--random_seed=1", "--no_cuda"]
    opts = parse_options([*options, *bound])
    split = data.load("digits", "data")
    vae = build_vae(opts, split.test.pixels.shape[1], split.test.levels)
    loader = data.ImageLoader(split.test, 100, fixed=True)
    with torch.no_grad():
        *_, weight, bias = vae.inference.parameters()
        weight.mul_(10)
        bias.uniform_(-1.5, 1.5)
        supports = []
        for images, _ in loader:
            marginals = ((vae.inference(images) + 1) / 2).clamp(0, 1)
            ends = marginals.cumsum(-1).frac()
            supports += [len({round(end, 4) % 1 for end in [*row, 0.0]}) for row in ends.tolist()]
    share = sum(support <= 4 for support in supports) / len(supports)
    assert 0.2 < share < 0.8
    results, _ = evaluate(opts, vae, loader)
    assert results["exact"] == pytest.approx(1 if max_support is None else share, abs=0.01)


@pytest.mark.parametrize(
    ("params", "status", "message"),
    [
        (["--mode=marg"], 2, "invalid choice: 'marg'"),
        (["--budget=-1"], 2, "--budget.*'-1'"),
        (["--budget=3", "--decomposition=threshold"], 2, "--decomposition threshold.*--budget"),
        (["--temperature=0"], 2, "--temperature.*'0'"),
        (["--data=mnist", "--data_root=/dev/null"], 1, "--data_root.*MNIST.*/dev/null"),
        (["--evaluate"], 2, "--evaluate.* --load_from_checkpoint"),
    ],
)
def test_refuses(params, status, message, capsys):
    assert run(PROG, main, params) == status
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.count("\n") == 1


def test_warns_of_options_without_effect(capsys):
    parse_options(["--mode=gs", "--budget=3", "--vocab_size=4", "--entropy_start=3", "--data_root=x", "--no_cuda"])
    error = capsys.readouterr().err
    for name in ("budget", "vocab_size", "entropy_start", "data_root"):
        assert f"warning: --{name} has no effect" in error


@pytest.mark.slow
def test_as_a_command():
    command = [sys.executable, "-m", "egg_sparse.zoo.bit_vector_vae", *SMALL, "--n_epochs=1", "--no_cuda"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["mode"] == "final"
