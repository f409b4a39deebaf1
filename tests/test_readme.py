"""What the README shows runs, and what it says of commands is what is checked."""

import argparse
import json
import pathlib
import re
import runpy
import shlex
import subprocess
import sys
import types
import warnings

import pytest
import torch
import yaml
from torch import nn

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted(
    file
    for pattern in ("*.md", ".github/**/*.md", "docs/*.md", "egg_sparse/zoo/*/*.md", "examples/**/*.md")
    for file in ROOT.glob(pattern)
)


def block(language, number=0, text=README):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)[number]


def versions():
    """EGG's game, and what it becomes by each of the diffs; the example is the last one."""
    script = (ROOT / "examples/first_game.py").read_text(encoding="utf-8")
    found = [script]
    for number in (1, 0):
        lines = block("diff", number).splitlines()
        old, new = ("\n".join(line[1:] for line in lines if line[0] in kept) for kept in (" -", " +"))
        assert script.count(new) == 1
        script = script.replace(new, old)
        found.append(script)
    return found[::-1]


@pytest.mark.slow
@pytest.mark.parametrize("version", [0, 1, 2], ids=["EGG", "one line", "two lines"])
def test_swap_in_example(version, tmp_path):
    script = tmp_path / "game.py"
    script.write_text(versions()[version])
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    last = json.loads(result.stdout.splitlines()[-1])
    understood = round(last["acc"] * 32)
    said = re.search(
        r"understands (\d+) of the 32 objects.*?all (\d+) with a support of (\d+) to (\d+) .*?"
        r"all (\d+) with ([\d.]+)\. ",
        " ".join(README.split()),
    )
    assert abs(understood - int(said[(1, 2, 5)[version]])) <= 4, "other versions of torch may draw other numbers"
    if version == 0:
        assert "support" not in last
    elif version == 1:
        assert int(said[3]) <= last["support"] <= int(said[4])
    else:
        assert last["support"] == pytest.approx(float(said[6]), rel=0.3)


PLACEHOLDERS = {
    "SEED": "1",
    "MODE": "gs",
    "GAMES": "guess",
    "NAME": "receivers",
    "N": "2",
    "FOLDER": "runs",
    "FILE": "runs.json",
}
#: The first words of commands that are not this package's.
OTHERS = (
    "pip",
    "pre-commit",
    "ruff",
    "mkdocs",
    "git",
    "sed",
    "rm",
    "export",
    "EIGEN_DIR",
    "EGG_SPARSE_HOST=standin torchrun",
)


def blocks_of(file):
    """The languages and the texts of a page's code blocks."""
    return re.findall(r"^ *```(\S*)\n(.*?)^ *```$", file.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands_of(file):
    """The commands of a page: the lines of its blocks without a language, and `python ...` within sentences."""
    found = [text for language, text in blocks_of(file) if language in ("", "bash", "sh", "console")]
    sentences = re.sub(r"```.*?```", "", file.read_text("utf-8"), flags=re.DOTALL)
    found += [" ".join(command.split()) for command in re.findall(r"`(python -m [^`]*|python \w+/[^`]*)`", sentences)]
    return [line.strip() for text in found for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def named(file):
    return file.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("file", [file for file in PAGES if "python" in dict(blocks_of(file))], ids=named)
def test_python_in_the_pages_runs(file):
    """But for the tutorial, whose notebook runs in test_notebook.py."""
    if file.name == "tutorial.md":
        return
    code = "\n".join(text for language, text in blocks_of(file) if language == "python")
    dtype = torch.get_default_dtype()
    try:
        exec(compile(code, str(file), "exec"), {"__name__": file.stem})
    finally:
        torch.set_default_dtype(dtype)


def test_other_blocks_are_checked_elsewhere():
    """``py`` is run by test_egg_today.py, ``text`` is output; ``diff`` is what two scripts differ in."""
    read = {"json": json.loads, "yaml": yaml.safe_load}
    for file in PAGES:
        for language, text in blocks_of(file):
            assert language in ("", "bash", "diff", "python", "py", "text", *read), named(file)
            assert language != "py" or file.name == "egg_today.md", named(file)
            if language in read:
                assert read[language](text), f"{named(file)}: {text}"


class Parsed(BaseException):
    """A command line was parsed."""


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("file", [file for file in PAGES if commands_of(file)], ids=named)
def test_commands_in_the_pages_are_accepted(file, monkeypatch):
    """By the parser of the program that they name, up to the end of the parsing."""
    parse_args = argparse.ArgumentParser.parse_args

    def parse_and_stop(*args, **kwargs):
        parse_args(*args, **kwargs)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.chdir(ROOT)
    for command in commands_of(file):
        words = [PLACEHOLDERS.get(word, word) for word in shlex.split(command) if word != "..."]
        if (
            command.startswith(OTHERS)
            or words[2:3] in (["pytest"], ["http.server"])
            or command.startswith("python -m egg.")
        ):
            continue
        assert words[0] == "python", f"{named(file)} has a block without a language that is no command: {command}"
        is_module = words[1] == "-m"
        program, *options = words[1 + is_module :]
        if not is_module and "ArgumentParser" not in (ROOT / program).read_text(encoding="utf-8"):
            assert not options, f"{named(file)}: {program} takes no options"
            continue
        monkeypatch.setattr(sys, "argv", [program, *options])
        with pytest.raises(Parsed):
            (runpy.run_module if is_module else runpy.run_path)(program, run_name="__main__")


def test_ci_runs_the_commands_that_newcomers_and_contributors_read():
    ci = (ROOT / ".ci/run").read_text()
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    blocks = [block("", 0), *(block("", number, contributing) for number in range(4))]
    commands = [command for lines in blocks for command in re.split(" && |\n", lines.strip())]
    commands.remove("pre-commit install")
    assert len(commands) == 8
    for command in commands:
        assert command.replace("pip install", "pip install --quiet") in ci


def anchors(markdown):
    """The anchors that GitHub gives to the headings of a text."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", markdown, flags=re.DOTALL), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def test_links_within_the_repository():
    assert len(PAGES) > 20
    for file in PAGES:
        text = re.sub(r"```.*?```", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
        for path, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text):
            target = file.parent / path if path else file
            assert target.exists(), f"{file.name} links to {path}"
            if anchor:
                assert anchor in anchors(target.read_text(encoding="utf-8")), f"{file.name} links to {path}#{anchor}"


def test_version_is_the_same_everywhere():
    from egg_sparse import __version__

    assert f"version: {__version__}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_migrate_names_what_there_is(core):
    """Of EGG's column, classes of the host that is tested; of ours, classes and options of this package."""
    import inspect

    import egg_sparse
    from egg_sparse import callbacks

    text = (ROOT / "docs/migrate.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \| (.*?) \|$", text.split("## Which message format")[0], re.MULTILINE)
    assert len(rows) > 8
    for theirs, ours in rows:
        name = re.match(r"`(\w+)", theirs)[1]
        assert hasattr(core, name) or f"{name}=" in theirs or "of egg.zoo" in theirs
        for found in re.findall(r"`(\w+)\(", ours):
            assert hasattr(egg_sparse, found) or hasattr(callbacks, found) or hasattr(core, found)
    assert "baseline_type" in inspect.signature(core.SymbolGameReinforce).parameters
    options = {**inspect.signature(egg_sparse.SymbolGameMarg).parameters}
    options |= inspect.signature(egg_sparse.SparsemaxWrapper).parameters
    options |= inspect.signature(egg_sparse.SenderReceiverRnnMarg).parameters
    options |= inspect.signature(egg_sparse.RnnSenderSparsemax).parameters
    options |= inspect.signature(callbacks.SupportSchedule).parameters
    prose = re.sub(r"```python\n.*?```", "", text, flags=re.DOTALL)
    for name in re.findall(r"(\w+)=", prose):
        assert name in {
            *options,
            "reduction",
            "agent",
            "baseline_type",
            "straight_through",
            "trainable_temperature",
            "causal",
        }


@pytest.fixture
def migrated():
    """The names that the code of docs/migrate.md defines, and what it says that expressions are."""
    text = (ROOT / "docs/migrate.md").read_text(encoding="utf-8")
    names = {"__name__": "migrate"}
    said = []
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(code, "docs/migrate.md", "exec"), names)
        shown = re.findall(r"^(\S.*?)  # (.*)$", code, re.MULTILINE)
        said += [(expression, str(eval(expression, names)), result) for expression, result in shown]
    return types.SimpleNamespace(**names), said


def test_migrate_says_what_sequences_look_like(migrated):
    names, said = migrated
    assert len(said) == 6
    for expression, found, result in said:
        assert found == result, expression
    _, interaction = names.egg_game.eval()(names.inputs, names.labels)
    _, swapped = names.game.eval()(names.inputs, names.labels)
    assert torch.equal(interaction.message_length, swapped.message_length)
    assert torch.equal(interaction.aux["length"], interaction.message_length.float())
    assert torch.equal(swapped.aux["length"], swapped.message_length - 1.0)


def test_migrate_says_what_loads(migrated):
    """The names of weights are the same after REINFORCE, and others after Gumbel-Softmax."""
    names, _ = migrated
    core, agent, sizes = names.core, names.Agent, names.sizes

    def build():
        sender = core.RnnSenderGS(agent(10, 16), max_len=3, temperature=1.0, **sizes)
        return core.SenderReceiverRnnGS(sender, core.RnnReceiverGS(agent(16, 10), **sizes), names.loss)

    names.marginalize(names.egg_game).load_state_dict(names.egg_game.state_dict())
    names.SenderReceiverRnnMarg(names.sender, names.receiver, names.loss).load_state_dict(names.egg_game.state_dict())
    trained, other = build(), build()
    with pytest.raises(RuntimeError, match="cell"):
        names.marginalize(build()).load_state_dict(trained.state_dict())
    other.load_state_dict(trained.state_dict())
    messages = [names.marginalize(game).eval().sender(names.inputs)[0] for game in (trained, other)]
    assert torch.equal(*messages)
    assert torch.equal(trained.eval().sender(names.inputs).argmax(2)[:, 0], messages[0][:, 0])


def test_migrate_says_what_is_refused(migrated):
    names, _ = migrated

    class PlusOne(nn.Module):
        def __init__(self, sender):
            super().__init__()
            self.sender = sender

        def forward(self, *inputs):
            message, *others = self.sender(*inputs)
            return message + 1, *others

    def game(sender=None, agent=None, loss=names.loss):
        sender = sender or names.core.RnnSenderReinforce(names.Agent(10, 16), max_len=3, **names.sizes)
        receiver = names.core.RnnReceiverDeterministic(agent or names.Agent(16, 10), **names.sizes)
        return names.core.SenderReceiverRnnReinforce(sender, receiver, loss)

    with pytest.raises(TypeError, match="PlusOne"):
        names.marginalize(game(PlusOne(game().sender)))

    class Pointing(nn.Linear):
        def forward(self, hidden, candidates, aux_input=None):
            return torch.einsum("gbe,be->bg", super().forward(candidates), hidden)

    def mean_accuracy(*inputs):
        losses, metrics = names.loss(*inputs)
        return losses, {"acc": metrics["acc"].mean()}

    candidates = torch.randn(10, 6, 7).transpose(0, 1)  # of 6 objects each
    labels = names.labels % 6
    for refused, batch, match in (
        (lambda: game(agent=Pointing(7, 16)), (names.inputs, labels, candidates), "receiver_input"),
        (lambda: game(loss=mean_accuracy), (names.inputs, names.labels), "acc"),
    ):
        with pytest.raises(ValueError, match=match):
            names.marginalize(refused())(*batch)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the mean of a mean is an approximation
            loss, _ = names.marginalize(refused(), strategy="loop")(*batch)
        assert torch.isfinite(loss)
