"""What docs/egg_today.md says of EGG: every defect, every workaround, every cell of its table."""

import collections
import contextlib
import importlib
import io
import itertools
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from scipy.stats import ConstantInputWarning, spearmanr
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from egg_sparse import SparsemaxWrapper, SymbolGameMarg, TopKSparsemaxWrapper, callbacks, host
from egg_sparse.estimators import SymbolGameScoreFunction, SymbolSampler
from egg_sparse.standin.language_analysis import edit_distance
from egg_sparse.zoo import checkpoints

core = host.core
DOC = (pathlib.Path(__file__).parent.parent / "docs" / "egg_today.md").read_text(encoding="utf-8")
PRELUDE = re.search(r"```py\n(.*?)```", DOC, re.DOTALL)[1]
ENTRIES = dict(re.findall(r"^### (.*?)\n(.*?)(?=^##|\Z)", DOC, re.DOTALL | re.MULTILINE))
INPUTS = torch.randn(40, 4, generator=torch.Generator().manual_seed(1))
LABELS = INPUTS.argmax(dim=1)
BATCHES = [(INPUTS[:30], LABELS[:30]), (INPUTS[30:], LABELS[30:])]  # of different sizes


class Entry:
    """One entry of the document."""

    def __init__(self, title):
        self.text = " ".join(ENTRIES[title].split())
        self.blocks = dict(re.findall(r"```(\w*)\n(.*?)```", ENTRIES[title], re.DOTALL))

    def quotes(self, error):
        """Whether the entry quotes the error, or standard error."""
        quoted = [quote for quote in re.findall(r"`([^`]+)`", self.text) if re.match(r"\w*Error: |[A-Z]\w+ .* ", quote)]
        said = f"{type(error).__name__}: {error}" if isinstance(error, Exception) else error
        assert quoted
        assert any(quote in said for quote in quoted), said
        return True

    def script(self):
        return PRELUDE + self.blocks["py"]

    def workaround(self, **given):
        """The names that the entry's code defines, of those that are given."""
        exec(compile(self.script(), "docs/egg_today.md", "exec"), given)
        return types.SimpleNamespace(**given)


def describes(title):
    """A test of the entry, which is given to it, on the real EGG alone."""

    def decorate(test):
        test.describes = title
        test = pytest.mark.parametrize("entry", [title], ids=[""], indirect=True)(test)
        return pytest.mark.skipif(not host.is_egg(), reason="the host is not EGG")(test)

    return decorate


@pytest.fixture
def entry(request):
    return Entry(request.param)


def test_every_entry_is_tested():
    tested = {test.describes for test in globals().values() if hasattr(test, "describes")}
    assert tested == set(ENTRIES)


class Sender(nn.Linear):
    def forward(self, sender_input, aux_input=None):
        return super().forward(sender_input).log_softmax(dim=1)


class Receiver(nn.Module):
    def __init__(self, n_messages=8, one_hot=False):
        super().__init__()
        self.read = nn.Linear(n_messages, 4) if one_hot else nn.Embedding(n_messages, 4)

    def forward(self, message, receiver_input=None, aux_input=None):
        return self.read(message)


def squared_error(sender_input, message, receiver_input, receiver_output, labels, aux_input):
    return (receiver_output - sender_input).square().sum(1), {"acc": (receiver_output.argmax(1) == labels).float()}


def reinforce_game(loss=squared_error, of=None, **options):
    sender, receiver = core.ReinforceWrapper(Sender(4, 8)), core.ReinforceDeterministicWrapper(Receiver())
    return (of or core.SymbolGameReinforce)(sender, receiver, loss, **options)


def gumbel_game(loss=squared_error):
    return core.SymbolGameGS(core.GumbelSoftmaxWrapper(Sender(4, 8)), Receiver(one_hot=True), loss)


class Recorder(core.Callback):
    """Keeps the loss and the Interaction of all epochs and validations."""

    def __init__(self):
        self.train, self.validation = [], []

    def on_epoch_end(self, loss, logs, epoch):
        self.train.append((loss, logs))

    def on_validation_end(self, loss, logs, epoch):
        self.validation.append((loss, logs))


def trained(game, *options, callbacks=(), n_epochs=1, batches=BATCHES, of=core):
    of.init(params=["--no_cuda", "--random_seed=1", f"--n_epochs={n_epochs}", *options])
    optimizer = of.build_optimizer(game.parameters())
    trainer = of.Trainer(game, optimizer, batches, validation_data=batches, callbacks=list(callbacks))
    trainer.train(n_epochs)
    return trainer


def python(script, *arguments, **environment):
    """Runs a script on the real EGG, in a process without this package's allow-list."""
    variables = {**os.environ, "EGG_SPARSE_HOST": "egg", **environment}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=variables)


def lines(output):
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def entropy(items):
    """The entropy of how often each item occurs, in bits."""
    counts = collections.Counter(map(str, items))
    return -sum(n / len(items) * math.log2(n / len(items)) for n in counts.values())


def information(first, second):
    return entropy(first) + entropy(second) - entropy(list(zip(first, second, strict=True)))


def similarity(inputs, messages, distance):
    """The topographic similarity under the cosine of the inputs, pair by pair."""
    pairs = list(itertools.combinations(range(len(inputs)), 2))
    of_inputs = [1 - torch.cosine_similarity(inputs[i].double(), inputs[j].double(), dim=0).item() for i, j in pairs]
    return spearmanr(of_inputs, [distance(messages[i], messages[j]) for i, j in pairs]).statistic


def hamming(first, second):
    return sum(a != b for a, b in zip(first, second, strict=True)) / len(first)


def edit(first, second):
    return edit_distance(first, second) / ((len(first) + len(second)) / 2)


# Errors


@describes("Checkpoints and interactions do not load")
@pytest.mark.skipif(
    tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 6), reason="torch < 2.6 loads everything"
)
def test_loading(entry, tmp_path):
    saver = core.InteractionSaver(test_epochs=[1], checkpoint_dir=str(tmp_path))
    trained(reinforce_game(), f"--checkpoint_dir={tmp_path}", callbacks=[saver])
    interactions = tmp_path / "interactions" / "validation" / "epoch_1" / "interaction_gpu0"
    script = f"""
import torch
import egg.core as core

core.init(params=["--no_cuda", "--load_from_checkpoint={tmp_path / "final.tar"}"])
model, optimizer = torch.nn.Module(), torch.optim.SGD([torch.zeros(1)], lr=1)
model.load_state_dict = optimizer.load_state_dict = lambda state: None
for load in (
    lambda: core.Trainer(model, optimizer, None).start_epoch,
    lambda: len(core.util.load_interactions({str(interactions)!r}).message),
):
    try:
        print(load())
    except Exception as error:
        print(f"{{type(error).__name__}}: {{error}}".splitlines()[0])
"""
    eggs, mended = (
        [line for line in python(code).stdout.splitlines() if line[0] != "#"]
        for code in (script, entry.script() + script)
    )
    assert all(entry.quotes(line) for line in eggs)
    assert len(eggs) == 2
    assert mended == ["1", "40"]


@describes("`Disent` always fails")
def test_disent(entry, capsys):
    attributes = torch.randint(3, (200, 2))
    logs = core.Interaction.empty()
    # the first position says one attribute and a part of the other, the second the other
    logs.sender_input, logs.message = attributes, attributes + 1
    logs.message[:, 0] += 3 * (attributes[:, 1] == 1)
    options = {"is_gumbel": False, "compute_bosdis": True, "vocab_size": 8}
    with pytest.raises(AttributeError) as error:
        core.Disent(**options).on_validation_end(0.0, logs, 1)
    assert entry.quotes(error.value)

    def gap(representations):
        gaps = []
        for column in zip(*representations.tolist(), strict=True):
            if entropy(column):
                best, second = sorted((information(a, column) for a in attributes.T.tolist()), reverse=True)
                gaps.append((best - second) / entropy(column))
        return sum(gaps) / len(gaps)

    histogram = torch.stack([(logs.message == symbol).sum(1) for symbol in range(1, 8)], dim=1)
    expected = {"posdis": pytest.approx(gap(logs.message), abs=1e-5), "bosdis": pytest.approx(gap(histogram), abs=1e-5)}
    entry.workaround().Disent(**options).on_validation_end(0.0, logs, 1)
    assert lines(capsys.readouterr().out) == [{**expected, "mode": "test", "epoch": 1}]

    logs.message = logs.message[:, 0]
    with pytest.raises(IndexError):
        core.Disent.posdis(attributes, logs.message)
    entry.workaround().Disent(is_gumbel=False).on_validation_end(0.0, logs, 1)
    assert lines(capsys.readouterr().out)[0]["posdis"] == pytest.approx(gap(logs.message[:, None]), abs=1e-5)


@describes("`posdis` of one attribute fails")
def test_posdis_of_one_attribute(entry):
    attributes, messages = torch.randint(4, (100, 1)), torch.randint(3, (100, 2))
    messages[:, 0] += attributes[:, 0]
    with pytest.raises(IndexError) as error:
        core.Disent.posdis(attributes, messages)
    assert entry.quotes(error.value)
    columns = messages.T.tolist()
    expected = sum(information(attributes[:, 0].tolist(), column) / entropy(column) for column in columns) / 2
    assert entry.workaround().posdis_of_one_attribute(attributes, messages) == pytest.approx(expected, abs=1e-5)


@describes("`TransformerSenderReinforce` always fails")
@pytest.mark.parametrize("generate_style", ["standard", "in-place"])
def test_transformer_sender(entry, generate_style):
    sizes = {"vocab_size": 5, "embed_dim": 8, "max_len": 3, "num_layers": 2, "num_heads": 2, "hidden_size": 16}
    sender = core.TransformerSenderReinforce(Sender(4, 8), **sizes, generate_style=generate_style)
    with pytest.raises(TypeError) as error:
        sender(INPUTS)
    assert entry.quotes(error.value)
    sender = entry.workaround().mended(sender)
    message, log_prob, entropy = sender(INPUTS)
    assert message.shape == log_prob.shape == entropy.shape == (40, 4)
    # attention to one key is that key's value
    attention, key = sender.transformer.layers[1].encoder_attn, torch.randn(6, 8)
    value = key @ attention.in_proj_weight[16:].T + attention.in_proj_bias[16:]
    given, _ = attention(query=torch.randn(3, 6, 8), key=key, value=key, static_kv=True)
    torch.testing.assert_close(given, attention.out_proj(value).expand(3, -1, -1))
    log_prob.sum().backward()
    assert sender.agent.weight.grad.abs().sum() > 0


@describes("A metric of one number per batch fails")
def test_scalar_metric(entry):
    def loss(*args):
        losses, metrics = squared_error(*args)
        return losses, {"acc": metrics["acc"].mean()}

    game = gumbel_game(loss)
    with pytest.raises(RuntimeError) as error:
        trained(game)
    assert entry.quotes(error.value)
    recorder = Recorder()
    game = entry.workaround(game=game).game
    trained(game, "--lr=0", callbacks=[recorder])
    _, logs = recorder.validation[0]
    assert logs.aux["acc"].mean().item() == pytest.approx(
        (logs.receiver_output.argmax(1) == LABELS).float().mean().item()
    )


@describes("A metric of one number per batch fails")
def test_scalar_metric_in_the_signal_game(entry):
    signal_game = pytest.importorskip("egg.zoo.signal_game.train")
    _, metrics = signal_game.loss_nll(None, None, None, torch.randn(5, 2), torch.zeros(5, dtype=torch.long), None)
    logs = core.Interaction(None, None, None, {}, None, None, None, metrics)
    with pytest.raises(RuntimeError) as error:
        core.Interaction.from_iterable([logs, logs])
    assert entry.quotes(error.value)


@describes("A metric of bools or whole numbers fails")
@pytest.mark.parametrize("dtype", [torch.bool, torch.long])
def test_metric_of_bools(entry, dtype, capsys):
    def loss(*args):
        losses, metrics = squared_error(*args)
        return losses, {"acc": metrics["acc"].to(dtype)}

    game = gumbel_game(loss)
    with pytest.raises(RuntimeError) as error:
        trained(game, callbacks=[core.ConsoleLogger(as_json=True)])
    assert entry.quotes(error.value)
    game, recorder = entry.workaround(game=game).game, Recorder()
    trained(game, callbacks=[core.ConsoleLogger(as_json=True), recorder])
    expected = (recorder.validation[0][1].receiver_output.argmax(1) == LABELS).float().mean().item()
    assert lines(capsys.readouterr().out)[-1]["acc"] == pytest.approx(expected)


@describes("Gumbel-Softmax over many symbols stops now and then")
def test_gumbel_softmax_over_many_symbols(entry, monkeypatch):
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)
    wrapper = core.GumbelSoftmaxWrapper(nn.Identity(), temperature=1.0)
    torch.manual_seed(0)

    def draw():
        return wrapper((3 * torch.randn(2048, 16384)).log_softmax(1))

    with pytest.raises(ValueError) as caught:  # noqa: PT011
        draw()
    assert entry.quotes(caught.value)
    entry.workaround()
    torch.testing.assert_close(draw().sum(1), torch.ones(2048), atol=1e-5, rtol=0)


@describes("Inputs of several tensors fail")
def test_inputs_of_several_tensors(entry, monkeypatch):
    monkeypatch.setattr(np, "int", int, raising=False)
    summation = importlib.import_module("egg.zoo.summation.features")
    assert isinstance(next(summation._DataIterator(max_n=4, n_batches_per_epoch=1, batch_size=4))[0], tuple)

    class OfTwo(Sender):
        def forward(self, sender_input, aux_input=None):
            return super().forward(torch.cat(sender_input, dim=1))

    def loss(sender_input, *args):
        return squared_error(torch.cat(sender_input, dim=1), *args)

    def game(**options):
        sender, receiver = core.ReinforceWrapper(OfTwo(4, 8)), core.ReinforceDeterministicWrapper(Receiver())
        return core.SymbolGameReinforce(sender, receiver, loss, **options)

    batches, recorder = [(inputs.split(2, dim=1), labels) for inputs, labels in BATCHES], Recorder()
    with pytest.raises(TypeError) as error:
        trained(game(), batches=batches)
    assert entry.quotes(error.value)
    mended = game(**entry.workaround().logged)
    trained(mended, "--lr=0", callbacks=[recorder], batches=batches)
    assert torch.equal(recorder.validation[0][1].message, mended.sender.agent(INPUTS.split(2, dim=1)).argmax(1))


@describes("`dump_interactions` fails on two batches")
def test_dump_interactions(entry):
    game = reinforce_game()
    with pytest.raises(AttributeError) as error:
        core.dump_interactions(game, BATCHES, gs=False, variable_length=False)
    assert entry.quotes(error.value)
    data = entry.workaround().with_aux_input(BATCHES)
    dumped = core.dump_interactions(game, data, gs=False, variable_length=False)
    assert torch.equal(dumped.sender_input, INPUTS)
    assert torch.equal(dumped.labels, LABELS)
    assert torch.equal(dumped.message, game.sender.agent(INPUTS).argmax(1))


@describes("The zoo's `guess_number` and `summation` fail")
@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "1.24.0", reason="NumPy < 1.24 has np.int")
def test_zoo_games(entry):
    guess_number, summation = (
        importlib.import_module(f"egg.zoo.{name}.features")
        for name in ("language_bottleneck.guess_number", "summation")
    )
    for make in (
        lambda: guess_number.UniformLoader(n_bits=4, bits_s=2, bits_r=2),
        lambda: next(summation._DataIterator(max_n=4, n_batches_per_epoch=1, batch_size=4)),
    ):
        with pytest.raises(AttributeError) as error:
            make()
        assert entry.quotes(error.value)
    with pytest.raises(RuntimeError) as error:
        importlib.import_module("egg.zoo.language_bottleneck.intervention").entropy(torch.zeros(3, 8))
    assert entry.quotes(error.value)
    tiny = ["--no_cuda", "--mode=gs", "--n_epochs=1", "--n_examples_per_epoch=64"]
    mended = python(entry.script(), *tiny)
    assert mended.returncode == 0, mended.stderr
    # all numbers of 8 bits
    assert lines(mended.stdout)[0]["intervention_message"]["label_entropy"] == pytest.approx(8)


@describes("The zoo's `mnist_classification` fails")
def test_mnist_classification(entry, monkeypatch):
    strategy = core.LoggingStrategy(store_sender_input=False)
    agents = core.GumbelSoftmaxWrapper(Sender(4, 6)), nn.Linear(6, 4), squared_error

    def build():
        return core.SymbolGameGS(*agents, logging_strategy=strategy)

    with pytest.raises(TypeError) as error:
        build()
    assert entry.quotes(error.value)
    monkeypatch.setattr(core, "SymbolGameGS", core.SymbolGameGS)
    entry.workaround()
    game = build()
    assert game.train_logging_strategy is game.test_logging_strategy is strategy


@describes("`torchrun` needs GPUs")
def test_torchrun(entry):
    # the port is one that nobody listens on: a single process asks the operating system for it
    launched = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}
    script = "from egg_sparse.host import core; print(core.init(params=[]).distributed_context)"
    result = python(script, CUDA_VISIBLE_DEVICES="", **launched)
    assert entry.quotes(result.stderr)
    variable, value = re.match(r"(\w+)=(\w+) torchrun ", entry.blocks[""]).groups()
    result = python(script, CUDA_VISIBLE_DEVICES="", **launched, **{variable: value})
    assert "is_distributed=True" in result.stdout, result.stderr


@describes("`--preemptable` needs a folder and SLURM")
def test_preemptable(entry, tmp_path, monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_PROCID"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    folder = tmp_path / "runs" / "first"
    options = ["--preemptable", f"--checkpoint_dir={folder}"]
    with pytest.raises(FileNotFoundError) as error:
        trained(reinforce_game(), *options)
    assert entry.quotes(error.value)
    folder.mkdir(parents=True)
    assert [trained(reinforce_game(), *options, n_epochs=2).start_epoch for _ in range(2)] == [0, 0]
    folder = tmp_path / "runs" / "second"
    options = ["--preemptable", f"--checkpoint_dir={folder}"]
    entry.workaround(opts=core.init(params=options))
    assert [trained(reinforce_game(), *options, n_epochs=n).start_epoch for n in (2, 3)] == [0, 2]


# Wrong numbers


@describes("The printed loss is not the mean loss")
def test_printed_loss(entry):
    game = reinforce_game(sender_entropy_coeff=0.1)
    game(INPUTS, LABELS)  # so that the baseline is not 0
    reported = entry.workaround().reporting(squared_error)
    for played, option in (
        (game, "--lr=0"),  # a score-function game
        (gumbel_game(), "--lr=0"),  # batches of different sizes
        (gumbel_game(), "--update_freq=2"),
    ):
        played.loss, recorder = reported, Recorder()
        trained(played, "--lr=0", option, callbacks=[recorder])
        loss, logs = recorder.train[0] if "update" in option else recorder.validation[0]
        mean = (logs.receiver_output - INPUTS).square().sum(1).mean().item()
        assert abs(loss - mean) > 0.01 * mean
        assert logs.aux["task_loss"].mean().item() == pytest.approx(mean)
        if "update" in option:
            mean_of_batches = sum(part.mean().item() for part in logs.aux["task_loss"].split([30, 10])) / 2
            assert loss == pytest.approx(mean_of_batches / 2)


@describes("`--update_freq` drops the last batches of an epoch")
def test_update_freq(entry):
    batches = [(INPUTS[:10], LABELS[:10]), (INPUTS[10:20], LABELS[10:20]), (INPUTS[20:30], LABELS[20:30])]

    def weights(batches, *options):
        torch.manual_seed(0)
        game = gumbel_game()
        trained(game, "--optimizer=sgd", *options, batches=batches, n_epochs=2)
        return torch.cat([parameter.detach().flatten() for parameter in game.parameters()])

    assert torch.equal(weights(batches, "--update_freq=4"), weights(batches, "--lr=0"))
    whole = entry.workaround().whole_updates
    assert whole(batches, 4) == []
    assert whole(batches, 2) == batches[:2]
    assert whole(batches, 3) == batches
    updates = []
    handle = register_optimizer_step_post_hook(lambda *_: updates.append(1))
    weights(whole(batches, 2), "--update_freq=2")
    handle.remove()
    assert len(updates) == 2  # one an epoch


@describes('The metric "baseline" is that of the last batch')
def test_logged_baseline(entry):
    def logged(baseline_type):
        game, recorder = reinforce_game(baseline_type=baseline_type), Recorder()
        trained(game, "--lr=0", callbacks=[recorder])
        losses = squared_error(
            *(getattr(recorder.train[0][1], name) for name in ("sender_input", "message", "receiver_input")),
            recorder.train[0][1].receiver_output,
            LABELS,
            None,
        )[0]
        first, second = losses[:30].mean().item(), losses[30:].mean().item()
        return recorder.train[0][1].aux["baseline"].tolist(), [first, (first + second) / 2]

    shown, right = logged(core.baselines.MeanBaseline)
    assert shown == pytest.approx([right[1]] * 2)
    assert abs(right[0] - right[1]) > 0.01
    shown, right = logged(entry.workaround().MeanBaseline)
    assert shown == pytest.approx(right)


@describes("Statistics count what stands after the end of a message")
def test_after_the_end(entry, capsys):
    mended = entry.workaround()
    logs = core.Interaction.empty()
    logs.message = torch.tensor([[1, 0, 2], [1, 0, 3]])
    core.MessageEntropy().on_validation_end(0.0, logs, 1)
    mended.MessageEntropy().on_validation_end(0.0, logs, 1)
    eggs, ours = (line["entropy"] for line in lines(capsys.readouterr().out))
    assert eggs == pytest.approx(1)
    assert ours == pytest.approx(0)

    logs.sender_input = torch.randint(3, (40, 2))
    logs.message = torch.nn.functional.pad(torch.randint(4, (40, 6)), (0, 1))
    logs.message[:, 0] = logs.sender_input[:, 0]
    logs.message[:, 1:3] = logs.sender_input[:, 1:] * torch.tensor([1, 0])
    sequences = [message[: message.index(0) + 1] for message in logs.message.tolist()]
    pairs = list(itertools.combinations(range(40), 2))
    inputs = logs.sender_input.tolist()
    expected = spearmanr(
        [hamming(inputs[i], inputs[j]) for i, j in pairs], [edit(sequences[i], sequences[j]) for i, j in pairs]
    ).statistic
    core.TopographicSimilarity().on_validation_end(0.0, logs, 1)
    mended.similarity.on_validation_end(0.0, logs, 1)
    mended.MessageEntropy().on_validation_end(0.0, logs, 1)
    eggs, ours, of_sequences = lines(capsys.readouterr().out)
    assert abs(eggs["topsim"] - expected) > 0.01
    assert ours["topsim"] == pytest.approx(expected)
    assert of_sequences["entropy"] == pytest.approx(entropy(sequences), rel=1e-5)


@describes("`MessageEntropy(is_gumbel=True)` is wrong for bit-vectors")
def test_entropy_of_bit_vectors(entry, capsys):
    logs = core.Interaction.empty()
    logs.message = torch.tensor(list(itertools.product((0.0, 1.0), repeat=6)))
    for callback in (core.MessageEntropy(is_gumbel=True), core.MessageEntropy(), entry.workaround().MessageEntropy()):
        callback.on_validation_end(0.0, logs, 1)
    wrong, without, ours = (line["entropy"] for line in lines(capsys.readouterr().out))
    assert f"{wrong:.2f}" == re.search(r"it prints (\d\.\d\d)\. ", entry.text)[1]
    assert without == pytest.approx(6)
    assert ours == 6


@describes("`TopographicSimilarity` fails or misleads on one-symbol messages")
def test_topographic_similarity(entry, capsys):
    callback = entry.workaround().TopographicSimilarity("cosine")
    logs = core.Interaction.empty()
    logs.sender_input, logs.message = INPUTS, torch.randint(5, (40,))
    with pytest.raises(ValueError, match="array") as error:
        core.TopographicSimilarity("cosine").on_validation_end(0.0, logs, 1)
    assert entry.quotes(error.value)
    callback.on_validation_end(0.0, logs, 1)
    right = similarity(INPUTS, logs.message[:, None].tolist(), hamming)
    assert lines(capsys.readouterr().out)[0]["topsim"] == pytest.approx(right)

    logs.message = torch.randint(2, (40, 6)).float()
    core.TopographicSimilarity("cosine").on_validation_end(0.0, logs, 1)
    callback.on_validation_end(0.0, logs, 1)
    eggs, ours = (line["topsim"] for line in lines(capsys.readouterr().out))
    right = similarity(INPUTS, logs.message.tolist(), hamming)
    assert abs(eggs - right) > 0.001
    assert ours == pytest.approx(right)

    logs.message = torch.ones(40, 6)
    with pytest.warns(ConstantInputWarning):
        core.TopographicSimilarity("cosine").on_validation_end(0.0, logs, 1)
    callback.on_validation_end(0.0, logs, 1)
    eggs, ours = capsys.readouterr().out.splitlines()
    assert "NaN" in eggs
    assert '"topsim": null' in ours


@describes("The causal Transformer receiver reads the symbol after the end")
def test_transformer_receiver(entry):
    sizes = {"vocab_size": 9, "max_len": 4, "embed_dim": 8, "num_heads": 2, "hidden_size": 8, "num_layers": 2}
    agent = Receiver(8, one_hot=True)
    message = torch.tensor([[1, 0, 5, 3, 0], [1, 0, 7, 2, 0], [1, 2, 0, 0, 0]])
    causal = core.TransformerReceiverDeterministic(agent, **sizes)(message)[0]
    assert (causal[0] - causal[1]).abs().max() > 0.01
    outputs = entry.workaround(agent=agent, sizes=sizes).receiver(message)[0]
    torch.testing.assert_close(outputs[0], outputs[1])
    assert (outputs[0] - outputs[2]).abs().max() > 0.01


@describes("`UniformAgentSampler` sets NumPy's seed")
def test_sampler_seed(entry):
    def drawn(make, seed):
        opts = core.init(params=[f"--random_seed={seed}", "--no_cuda"])
        make(opts)
        return np.random.rand()

    agents = {"senders": [nn.Identity()], "receivers": [nn.Identity()], "losses": [squared_error]}
    assert len({drawn(lambda opts: core.UniformAgentSampler(*agents.values()), seed) for seed in (1, 2, 3)}) == 1
    assert len({drawn(lambda opts: entry.workaround(opts=opts, **agents), seed) for seed in (1, 2, 3)}) == 3


@describes("`AttributesValuesDataset` leaves out its last batch")
def test_attributes_values_dataset(entry):
    datasets = importlib.import_module("egg.core.datasets")
    dataset = datasets.AttributesValuesDataset(3, 4, 64, 16, seed=1)
    first, second = list(dataset), list(dataset)
    assert len(dataset.samples) == 64
    assert len(first) == 3
    assert all(torch.equal(one[0], other[0]) for one, other in zip(first, second, strict=True))
    assert len({datasets.AttributesValuesDataset(3, 4, 64, 16, seed=0).seed for _ in range(3)}) == 3
    loader = entry.workaround(dataset=dataset).loader
    first, second = ([core.batch.Batch(*batch).sender_input for batch in loader] for _ in range(2))
    assert [len(batch) for batch in first] == [16] * 4
    assert sorted(torch.cat(first).tolist()) == [list(map(float, sample)) for sample in sorted(dataset.samples)]
    assert not torch.equal(torch.cat(first), torch.cat(second))


# Resumed runs


@describes("A resumed run starts with a new baseline")
def test_baseline_of_a_resumed_run(entry, tmp_path):
    for of, kept in ((core.SymbolGameReinforce, False), (entry.workaround().ReinforceGame, True)):
        folder = tmp_path / of.__name__
        game = reinforce_game(of=of)
        trained(game, f"--checkpoint_dir={folder}", n_epochs=2)
        resumed = reinforce_game(of=of)
        trained(resumed, f"--load_from_checkpoint={folder / 'final.tar'}", n_epochs=2)
        assert game.baseline.n_points == 4
        assert (resumed.baseline.n_points == 4) == kept
        assert torch.equal(resumed.baseline.mean_baseline, game.baseline.mean_baseline) == kept

    game, resumed = (SymbolGameScoreFunction(SymbolSampler(Sender(4, 8)), Receiver(), squared_error) for _ in range(2))
    trained(game, f"--checkpoint_dir={tmp_path / 'ours'}", n_epochs=2)
    trained(resumed, f"--load_from_checkpoint={tmp_path / 'ours' / 'final.tar'}", n_epochs=2)
    assert game.mean_loss != 0
    assert torch.equal(resumed.mean_loss, game.mean_loss)


@describes("A resumed run starts with the first temperature again")
def test_temperature_of_a_resumed_run(entry, tmp_path):
    class Temperatures(core.Callback):
        def __init__(self, agent):
            self.agent, self.seen = agent, []

        def on_batch_end(self, logs, loss, batch_id, is_training=True):
            self.seen.append(self.agent.temperature)

    def seen(annealing, *options, n_epochs):
        game = gumbel_game()
        temperatures = Temperatures(game.sender)
        trained(game, *options, callbacks=[annealing(game.sender), temperatures], n_epochs=n_epochs)
        return temperatures.seen[:: 2 * len(BATCHES)]

    for number, (annealing, right) in enumerate(
        [
            (core.TemperatureUpdater, [1, 0.9, 1, 0.9]),
            (lambda sender: entry.workaround(sender=sender).annealing, [1, 0.9, 0.81, 0.729]),
        ]
    ):
        folder = tmp_path / str(number)
        first = seen(annealing, f"--checkpoint_dir={folder}", n_epochs=2)
        rest = seen(annealing, f"--load_from_checkpoint={folder / 'final.tar'}", n_epochs=4)
        assert first + rest == pytest.approx(right)


@describes("Resuming a complete run makes it start over")
def test_resuming_a_complete_run(entry, tmp_path):
    for number, (saver, epoch) in enumerate(((core.CheckpointSaver, 0), (entry.workaround().CheckpointSaver, 2))):
        path = tmp_path / str(number) / "final.tar"
        trained(reinforce_game(), callbacks=[saver(path.parent)], n_epochs=2)
        assert checkpoints.read(path).epoch == 2
        trained(reinforce_game(), f"--load_from_checkpoint={path}", callbacks=[saver(path.parent)], n_epochs=2)
        assert checkpoints.read(path).epoch == epoch


@describes("`CheckpointSaver(max_checkpoints=n)` keeps n + 1 files")
def test_max_checkpoints(entry, tmp_path):
    def files(saver):
        trained(reinforce_game(), callbacks=[saver], n_epochs=5)
        return len(list(saver.checkpoint_path.iterdir()))

    assert files(core.CheckpointSaver(tmp_path / "eggs", max_checkpoints=3)) == 4
    assert files(entry.workaround(folder=tmp_path / "ours", n=3).saver) == 3


# Silence and memory


@describes("A Trainer without callbacks prints nothing")
def test_trainer_without_callbacks(entry, capsys):
    core.init(params=["--no_cuda"])
    game = reinforce_game()
    given = {"game": game, "optimizer": core.build_optimizer(game.parameters()), "batches": BATCHES}
    core.Trainer(game, given["optimizer"], BATCHES, validation_data=BATCHES).train(1)
    assert not capsys.readouterr().out
    entry.workaround(**given).trainer.train(1)
    assert capsys.readouterr().out.startswith("test: epoch 1, loss ")


@describes("`InteractionSaver` ignores epochs that are not a list")
@pytest.mark.parametrize("epochs", [(1, 2), range(1, 3)])
def test_interaction_saver(entry, epochs, tmp_path):
    eggs = core.InteractionSaver(test_epochs=epochs, checkpoint_dir=str(tmp_path / "eggs"))
    ours = entry.workaround(epochs=epochs, folder=str(tmp_path / "ours")).saver
    trained(reinforce_game(), callbacks=[eggs, ours], n_epochs=2)
    assert not (tmp_path / "eggs").exists()
    saved = sorted(path.name for path in (tmp_path / "ours" / "interactions" / "validation").iterdir())
    assert saved == ["epoch_1", "epoch_2"]


@describes("`nest_local` hides what failed, and mixes two sweeps")
def test_nest_local(entry, tmp_path):
    (tmp_path / "first.json").write_text('{"lr": [0.1, 0.2]}')
    (tmp_path / "second.json").write_text('{"lr": [0.3, -1]}')
    game = """
def game_main(params):
    print("played", params)
    if params == ["--lr=-1"]:
        raise ValueError("lr must be positive")

main = game_main
"""
    (tmp_path / "eggs.py").write_text(game)
    (tmp_path / "mended.py").write_text(game + entry.script().replace("from egg_sparse.host import core", ""))

    def outputs(name, *sweeps):
        """The status, and what was written to all .out and to all .err files."""
        results = tmp_path / f"results-of-{name}"
        command = [sys.executable, "-m", "egg.nest.nest_local", "--name=any", f"--game={name}", f"--root_dir={results}"]
        variables = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        result = subprocess.run([*command, *sweeps], cwd=tmp_path, env=variables, capture_output=True, text=True)
        files = sorted(results.iterdir())
        written = ["".join(path.read_text() for path in files if path.suffix == suffix) for suffix in (".out", ".err")]
        return result.returncode, written[0].count("played"), "lr must be positive" in written[1]

    assert outputs("eggs", "--sweep=first.json", "--sweep=second.json") == (0, 2, False)
    assert outputs("mended", "--py_sweep=mended") == (0, 4, True)


@describes("`EarlyStopperAccuracy` keeps every Interaction")
def test_early_stopper(entry):
    eggs, ours = core.EarlyStopperAccuracy(1.1), entry.workaround().EarlyStopperAccuracy(1.1)
    trained(reinforce_game(), callbacks=[eggs, ours], n_epochs=3)
    assert [len(logs.sender_input) for _, logs in eggs.validation_stats] == [40] * 3
    assert len(ours.validation_stats) == 1
    recorder = Recorder()
    trained(reinforce_game(), callbacks=[entry.workaround().EarlyStopperAccuracy(0.0), recorder], n_epochs=3)
    assert len(recorder.train) == 1


@describes("`SenderReceiverRnnGS` keeps the graphs of an epoch")
def test_graphs_of_an_epoch(entry):
    sender = core.RnnSenderGS(Sender(4, 8), 5, 6, 8, max_len=3, temperature=1.0)
    receiver = core.RnnReceiverGS(Receiver(8, one_hot=True), 5, 6, 8)
    for of, keeps in ((core.SenderReceiverRnnGS, True), (entry.workaround().RnnGameGS, False)):
        torch.manual_seed(0)
        game, recorder = of(sender, receiver, squared_error), Recorder()
        trained(game, "--lr=0", callbacks=[recorder])
        metrics = recorder.train[0][1].aux
        assert {name: value.requires_grad for name, value in metrics.items()} == {"acc": keeps, "length": keeps}
        if keeps:
            eggs = metrics
    torch.testing.assert_close(metrics, {name: value.detach() for name, value in eggs.items()})


# The table


TABLE = DOC[DOC.index("## Callbacks and message formats") :]
CELLS = [
    (call, message_format, verdict)
    for call, *verdicts in re.findall(r"^\| `(.*?)` \| (.*?) \| (.*?) \| (.*?) \|$", TABLE, re.MULTILINE)
    for message_format, verdict in zip(("index", "one_hot", "bits"), verdicts, strict=True)
]
WITH_AUX_INPUT = [(*batch, None, {}) for batch in BATCHES]


class Scores(nn.Linear):
    def forward(self, sender_input, aux_input=None):
        return super().forward(sender_input)


class Played:
    """A game of one message format, its validation of one epoch, and what that has to show."""

    def __init__(self, of, message_format, folder):
        self.core, self.folder = of, folder
        if message_format == "bits":
            sender = TopKSparsemaxWrapper(Scores(4, 6))
        else:
            sender = SparsemaxWrapper(Scores(4, 8), message_format=message_format)
        receiver = Receiver(6 if message_format == "bits" else 8, one_hot=message_format != "index")
        self.game = SymbolGameMarg(sender, receiver, squared_error)
        scores = sender.agent(INPUTS)
        self.symbols = scores.argmax(dim=1)
        self.message = {"index": self.symbols, "one_hot": nn.functional.one_hot(self.symbols, 8).float()}.get(
            message_format, (scores > 0).float()
        )
        self.rows = self.message.view(40, -1).tolist()
        self.acc = (receiver(self.message).argmax(dim=1) == LABELS).float().mean().item()

    def runs(self, callback, n_epochs=1):
        """What is printed by a training of n epochs at a learning rate of 0, and how many of them were run."""
        output, recorder = io.StringIO(), Recorder()
        with contextlib.redirect_stdout(output):
            trained(self.game, "--lr=0", callbacks=[callback, recorder], n_epochs=n_epochs, of=self.core)
        return output.getvalue(), len(recorder.train)

    def value(self, call, **given):
        given = {"folder": str(self.folder), "n_epochs": 1, "game": self.game, "data": WITH_AUX_INPUT, **given}
        return eval(call, {"core": self.core, "callbacks": callbacks, **given})

    def verdict(self, call):
        """Plays it, and compares with what is right."""
        name = re.match(r"\w+\.(\w+)", call)[1]
        return getattr(self, f"_{name}")(call)

    def _ConsoleLogger(self, call):
        output, _ = self.runs(self.value(call))
        return "right" if lines(output)[-1]["acc"] == pytest.approx(self.acc) else "wrong"

    def _ProgressBarLogger(self, call):
        callback = self.value(call)
        self.runs(callback)
        table = getattr(callback.progress, "info_table", None) or callback.info_table
        shown = {str(column.header): list(column.cells)[-1] for column in table.columns}
        return "right" if shown["Phase"] == "test" and shown["acc"] == f"{self.acc:.3f}" else "wrong"

    def _CheckpointSaver(self, call):
        self.runs(self.value(call))
        checkpoint = checkpoints.read(self.folder / "1.tar")
        state = self.game.state_dict()
        same = state.keys() == checkpoint.model_state_dict.keys() and all(
            torch.equal(value, checkpoint.model_state_dict[name]) for name, value in state.items()
        )
        return "right" if same and checkpoint.epoch == 1 else "wrong"

    def _InteractionSaver(self, call):
        self.runs(self.value(call))
        saved = torch.load(self.folder / "interactions" / "validation" / "epoch_1" / "interaction_gpu0")
        return "right" if torch.equal(saved.message, self.message) else "wrong"

    def _PrintValidationEvents(self, call):
        output = self.runs(self.value(call))[0].splitlines()
        shown = json.loads(output[output.index("MESSAGES") + 1])
        return "right" if shown == self.message.tolist() else "wrong"

    def _EarlyStopperAccuracy(self, call):
        epochs = [self.runs(self.value(call, threshold=self.acc + more), 2)[1] for more in (-0.01, 0.01)]
        return "right" if epochs == [1, 2] else "wrong"

    def _MessageEntropy(self, call):
        shown = lines(self.runs(self.value(call))[0])[-1]
        return "right" if shown["entropy"] == pytest.approx(entropy(self.rows), rel=1e-5) else "wrong"

    def _TopographicSimilarity(self, call):
        shown = lines(self.runs(self.value(call))[0])[-1]["topsim"]
        if shown == pytest.approx(similarity(INPUTS, self.rows, hamming), abs=1e-6):
            return "right"
        return "edit distance" if shown == pytest.approx(similarity(INPUTS, self.rows, edit), abs=1e-6) else "wrong"

    def _Disent(self, call):
        self.runs(self.value(call))
        return "no error"

    def _dump_interactions(self, call):
        dumped = self.value(call)
        by_length = self.message.clone()
        if by_length.dim() == 2:
            by_length[torch.arange(by_length.shape[1]) >= dumped.message_length[:, None]] = 0
        for verdict, message in (("right", self.message), ("by length", by_length), ("symbols", self.symbols)):
            if torch.equal(dumped.message, message) and (verdict == "by length") == ("variable_length=True" in call):
                return verdict
        return "wrong"


@pytest.mark.parametrize(("call", "message_format", "verdict"), CELLS, ids=["-".join(cell) for cell in CELLS])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_table(core, call, message_format, verdict, tmp_path):
    if call.startswith("core.") and not hasattr(core, re.match(r"core\.(\w+)", call)[1]):
        pytest.skip(f"{core.__name__} has no such callback")
    played = Played(core, message_format, tmp_path)
    if verdict == "error":
        with pytest.raises((AttributeError, IndexError, RuntimeError, TypeError, ValueError)):
            played.verdict(call)
    else:
        assert played.verdict(call) == verdict


def test_table_is_read():
    assert len(CELLS) >= 51
