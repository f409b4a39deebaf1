"""The language of saved runs."""

import importlib
import json

import numpy as np
import pytest
import torch

from egg_sparse.language import Language, statistics
from egg_sparse.zoo import cli, language
from egg_sparse.zoo.compo_vs_generalization import train as objects
from egg_sparse.zoo.language import language_of_run
from small_runs import OPTIONS


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run of the game of objects, and its results."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    options = ["--n_values=4", "--vocab_size=5", "--n_epochs=2", "--max_support=32", "--sender_hidden=8"]
    return folder, objects.main([*options, "--random_seed=1", f"--out={folder}", "--no_cuda"])


def test_it_is_the_language_that_the_test_describes(run):
    folder, results = run
    spoken = language_of_run(folder)
    assert spoken.attributes.shape == (len(spoken.language), 2)
    found = language.main([str(folder)])
    assert found["exact"]["exact"] == results["exact"] == 1
    assert found["exact"]["synonyms"] == pytest.approx(results["support"])
    assert found["greedy"]["synonyms"] == pytest.approx(1)


def test_many_images_are_not_compared_but_their_classes_are_used(run, monkeypatch, capsys):
    folder, _ = run
    spoken = language_of_run(folder)
    spoken.input_distance = "euclidean"
    monkeypatch.setattr(language, "language_of_run", lambda *_: spoken)
    monkeypatch.setattr(language, "MAX_COMPARED", 3)
    found = language.main([str(folder)])
    assert "posdis" in found["exact"]
    assert "topsim" not in found["exact"]
    assert "# no topographic similarity" in capsys.readouterr().err


def test_the_command(run, tmp_path, capsys):
    folder, _ = run
    params = [str(folder), "--resamples=3", "--samples=2", f"--arrays={tmp_path}/arrays.npz", f"--elcc={tmp_path}/elcc"]
    assert cli.run(language.PROG, language.main, params) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    spoken = language_of_run(folder)
    expected = statistics(spoken.language, spoken.attributes)
    assert found["exact"] == pytest.approx(expected, abs=1e-5)
    assert found["standard_errors"].keys() == expected.keys()
    with np.load(tmp_path / "arrays.npz", allow_pickle=False) as arrays:
        again = Language.of_messages(torch.from_numpy(arrays["messages"]), "sequences")
        assert len(again) == 2 * len(spoken.language) == len(arrays["observations"])
    (corpus,) = (tmp_path / "elcc").rglob("corpus.jsonl")
    assert len(corpus.read_text().splitlines()) == len(again)
    assert json.loads((corpus.parent / "metadata.json").read_text()).keys() == expected.keys()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("entry", "options", "kind"),
    [
        ("signal_game", "--mode=gs", "symbols"),
        ("signal_game", "--mode=marg --max_len=2", "sequences"),
        ("semi_supervised_vae", "--mode=sfe", "symbols"),
        ("bit_vector_vae", "--mode=sparsemap", "bits"),
    ],
)
@pytest.mark.usefixtures("few_test_games")
def test_of_every_experiment(entry, options, kind, tmp_path):
    train = importlib.import_module(f"egg_sparse.zoo.{entry}.train")
    options = [*options.split(), *OPTIONS[entry].split(), "--n_epochs=1"]
    train.main([*options, "--random_seed=1", f"--out={tmp_path}/run", "--no_cuda"])
    found = language.main([f"{tmp_path}/run"])
    spoken = language_of_run(tmp_path / "run")
    assert spoken.language.kind == kind
    assert len(spoken.language) == found["inputs"] == len(spoken.inputs) == len(spoken.inputs.unique(dim=0))
    assert 0 <= found["exact"]["information"] <= found["exact"]["entropy"] + 1e-9
    assert found["greedy"]["conditional_entropy"] == pytest.approx(0, abs=1e-9)
    assert "topsim" in found["exact"]


class TestMistakes:
    """A sentence, and a status that is not 0."""

    def test_no_run(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"there is no run in .*: it has no opts\.json"):
            language_of_run(tmp_path)

    def test_no_checkpoint(self, run, tmp_path):
        (tmp_path / "opts.json").write_text((run[0] / "opts.json").read_text())
        with pytest.raises(FileNotFoundError, match="there is no checkpoint in"):
            language_of_run(tmp_path)

    def test_of_another_experiment(self, tmp_path):
        (tmp_path / "opts.json").write_text('{"mode": "marg"}')
        with pytest.raises(ValueError, match="none of the experiments signal_game"):
            language_of_run(tmp_path)

    def test_a_checkpoint_elsewhere(self, run, tmp_path):
        elsewhere = tmp_path / "final.tar"
        elsewhere.write_bytes((run[0] / "checkpoints" / "final.tar").read_bytes())
        with pytest.raises(ValueError, match="checkpoint must be one in the run folder"):
            language_of_run(run[0], elsewhere)
        assert len(language_of_run(run[0], run[0] / "checkpoints" / "final.tar").language)

    def test_an_export_that_cannot_be_written_comes_after_the_statistics(self, run, tmp_path, capsys):
        with pytest.raises(FileNotFoundError):
            language.main([str(run[0]), f"--arrays={tmp_path}/nowhere/arrays.npz"])
        assert "exact" in json.loads(capsys.readouterr().out)

    def test_one_resample(self, run):
        with pytest.raises(ValueError, match="--resamples must be 0 or at least 2, got 1"):
            language.main([str(run[0]), "--resamples=1"])
