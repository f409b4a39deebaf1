"""``--config``: options in YAML and JSON, in their order, and what is refused."""

import json

import pytest
import yaml

from egg_sparse import host
from egg_sparse.zoo import run_folder
from egg_sparse.zoo.bit_vector_vae import train as bit_vector_vae
from egg_sparse.zoo.cli import run
from egg_sparse.zoo.compo_vs_generalization import train as compo_vs_generalization
from egg_sparse.zoo.signal_game import train as signal_game
from egg_sparse.zoo.signal_game.train import PROG, main

OPTIONS = {"lr": 0.25, "mode": "gs", "n_epochs": 3, "straight_through": True, "max_support": None, "out": "a folder"}


@pytest.fixture(params=["standin", "egg"])
def parse(request, monkeypatch):
    """The options of the signal game, parsed by each host."""
    core = host.core if request.param == "standin" else request.getfixturevalue("egg")
    monkeypatch.setattr("egg_sparse.zoo.resume.core", core)
    return lambda *params: signal_game.parse_options(["--no_cuda", *params])


def write(file, options):
    file.write_text(json.dumps(options) if file.suffix == ".json" else yaml.safe_dump(options))
    return f"--config={file}"


@pytest.mark.parametrize("name", ["config.yaml", "config.yml", "config.json", "config", "config.txt"])
def test_options_by_name_and_those_given_win(name, parse, tmp_path):
    config = write(tmp_path / name, OPTIONS)
    opts = parse(config)
    assert {key: getattr(opts, key) for key in OPTIONS} == {**OPTIONS, "max_support": 10}
    assert (opts.lr, type(opts.n_epochs)) == (0.25, int)
    opts = parse(config, "--lr=0.5", "--mo", "marg")
    assert (opts.lr, opts.mode, opts.n_epochs) == (0.5, "marg", 3)


def test_json_without_a_suffix_and_numbers_that_yaml_takes_for_text(parse, tmp_path):
    (tmp_path / "a").write_text(' {"lr": 1e-3}')
    (tmp_path / "b.yaml").write_text("lr: 1e-3\nrandom_seed: 7  # a comment\n")
    assert parse(f"--config={tmp_path / 'a'}").lr == 0.001
    opts = parse(f"--config={tmp_path / 'b.yaml'}")
    assert (opts.lr, opts.random_seed) == (0.001, 7)


def test_an_option_that_has_no_effect_draws_a_warning(tmp_path, capsys):
    signal_game.parse_options([write(tmp_path / "c.yaml", {"mode": "marg", "gs_tau": 0.5, "vocab_size": 9})])
    assert capsys.readouterr().err == f"{PROG}: warning: --gs_tau has no effect in mode marg\n"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("learning_rate: 1", ["learning_rate", "no option"]),
        ("n_epoch: 1", ["'n_epoch'", "n_epochs"]),
        ("n-epochs: 1", ["'n-epochs'", "n_epochs"]),
        ("3: 1", ["no option 3"]),
        ("n_epochs: 1.5", ["n_epochs", "whole number", "1.5"]),
        ("lr: fast", ["--lr", "'fast'"]),
        ("mode: none", ["--mode", "none", "marg"]),
        ("no_cuda: 1", ["no_cuda", "true or false", "1"]),
        ("mode: no", ["mode", "false", "quotes"]),
        ("lr: true", ["lr", "true"]),
        ("lr: [1, 2]", ["lr", "a list"]),
        ("lr: {a: 1}", ["lr", "options within it"]),
        ("out: 2020-01-01", ["out", "date"]),
        ("lr: .nan", ["--lr", "nan"]),
        ("resume: run", ["resume", "command line"]),
        ("config: other.yaml", ["config", "command line"]),
        ("h: true", ["no option"]),
        ("lr: 1\nlr: 2", ["lr", "twice"]),
        ("- lr", ["a list"]),
        ("", ["nothing"]),
        ("lr: 'a", ["damaged"]),
        ("lr: !!python/object/apply:os.system ['touch executed']", ["damaged", "python/object"]),
        ("[" * 1000, ["damaged"]),
        ("lr: 1\n#" + "x" * 200_000, ["bytes"]),
    ],
    ids=lambda value: value[:25] if isinstance(value, str) else "",
)
def test_refused_in_one_sentence(text, named, tmp_path, capsys):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    assert run(PROG, main, [f"--config={file}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "Traceback" not in error
    assert all(each in error for each in [str(file), *named])
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"], "nothing is begun, nothing is executed"


@pytest.mark.parametrize(("content", "named"), [(b"\xff\xfe{", "damaged"), (b'{"lr": 1', "damaged"), (None, "No such")])
def test_files_that_cannot_be_read(content, named, tmp_path, capsys):
    file = tmp_path / "config.json"
    if content is not None:
        file.write_bytes(content)
    for path in (file, tmp_path):
        assert run(PROG, main, [f"--config={path}"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert named in error or path == tmp_path
        assert str(path) in error


def test_contradictions_count_those_of_the_file(tmp_path, capsys):
    config = write(tmp_path / "c.yaml", {"out": "there"})
    assert run(PROG, main, [config, "--resume=run"]) == 2
    assert "--resume excludes --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("train", "params"),
    [
        (signal_game, ["--mode=gs", "--max_len=2"]),
        (signal_game, ["--mode=marg"]),
        (bit_vector_vae, ["--mode=topksparse"]),
        (compo_vs_generalization, ["--mode=rf", "--baseline=no"]),
    ],
)
@pytest.mark.parametrize("name", ["opts.json", "copy"])
def test_a_runs_own_options_make_the_same_run_again(name, train, params, tmp_path, capsys):
    opts = train.parse_options([*params, "--no_cuda", "--random_seed=3", "--lr=0.125"])
    file = tmp_path / name
    file.write_text(json.dumps(run_folder.saved_options(opts)))
    capsys.readouterr()
    again = train.parse_options([f"--config={file}", "--no_cuda"])
    assert run_folder.saved_options(again) == run_folder.saved_options(opts)
    assert capsys.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.usefixtures("few_test_games")
def test_order_of_saved_options_file_and_command_line(tmp_path):
    """Of a resumed run: what it was, then the file, then the command line; of a switch also the way back."""
    small = ["--n_epochs=1", "--batches_per_epoch=3", "--no_cuda", "--random_seed=3"]
    config = write(tmp_path / "one.yaml", {"lr": 0.5, "keep": 4, "mode": "gs", "straight_through": True})
    main([config, *small, "--keep=5", "--out=run"])
    saved = json.loads((tmp_path / "run/opts.json").read_text())
    assert {"lr": 0.5, "keep": 5, "mode": "gs", "straight_through": True}.items() <= saved.items()
    assert not {"config", "quick", "version"} & saved.keys()
    later = write(tmp_path / "two.yaml", {"n_epochs": 2, "lr": 0.25, "straight_through": False})
    main(["--resume=run", later, "--lr=0.125", "--no_cuda"])
    changed = json.loads((tmp_path / "run/opts.json").read_text())
    assert changed == {**saved, "n_epochs": 2, "lr": 0.125, "straight_through": False}
    tested = main([later, "--evaluate", "--load_from_checkpoint=run/checkpoints/final.tar", "--no_cuda"])
    assert tested["mode"] == "final"
