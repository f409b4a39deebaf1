"""What the README shows runs, and what it says of commands is what is checked."""

import json
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language, number=0):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)[number]


def versions():
    """EGG's game, and what it becomes by each of the diffs."""
    script = block("python")
    found = [script]
    for number in (0, 1):
        lines = block("diff", number).splitlines()
        old, new = ("\n".join(line[1:] for line in lines if line[0] in kept) for kept in (" -", " +"))
        assert script.count(old) == 1
        script = script.replace(old, new)
        found.append(script)
    return found


@pytest.mark.parametrize("version", [0, 1, 2], ids=["EGG", "one line", "two lines"])
def test_swap_in_example(version, tmp_path):
    script = tmp_path / "game.py"
    script.write_text(versions()[version])
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    last = json.loads(result.stdout.splitlines()[-1])
    understood = round(last["acc"] * 32)
    said = re.search(
        r"understands (\d+) of the 32 objects.*?all (\d+)\s+with a support of ([\d.]+).*?all (\d+)\s+with ([\d.]+)\.\s",
        README,
        re.DOTALL,
    )
    assert abs(understood - int(said[(1, 2, 4)[version]])) <= 4, "other versions of torch may draw other numbers"
    if version == 0:
        assert "support" not in last
    else:
        assert last["support"] == pytest.approx(float(said[(3, 5)[version - 1]]), rel=0.3)


def test_python_in_the_docs_runs():
    for file in (ROOT / "docs").glob("*.md"):
        blocks = re.findall(r"```python\n(.*?)```", file.read_text(encoding="utf-8"), re.DOTALL)
        if blocks:
            exec(compile("\n".join(blocks), str(file), "exec"), {"__name__": file.stem})


def test_ci_runs_the_commands_of_the_readme():
    ci = (ROOT / ".ci/run").read_text()
    for number in (0, 1):
        for command in block("", number).strip().split(" && "):
            command = command.replace("pip install", "pip install --quiet")
            assert command in ci


def test_links_within_the_repository():
    of_folders = ("*.md", "docs/*.md", "egg_sparse/zoo/*/*.md", "examples/**/*.md")
    for file in (file for pattern in of_folders for file in ROOT.glob(pattern)):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", file.read_text(encoding="utf-8")):
            assert (file.parent / target).exists(), f"{file.name} links to {target}"


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
    options |= inspect.signature(callbacks.SupportSchedule).parameters
    for name in re.findall(r"(\w+)=", text):
        assert name in {*options, "reduction", "agent", "baseline_type", "straight_through", "trainable_temperature"}
