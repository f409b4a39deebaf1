"""Which host is found, in processes of their own: real, forced, missing, unrelated, incomplete."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch

from egg_sparse import standin
from egg_sparse.zoo import checkpoints

SAY = "import warnings; from egg_sparse import host; print(host.core.__name__, '|', host.describe())"


def python(code, path=None, **environment):
    variables = {key: value for key, value in os.environ.items() if key != "EGG_SPARSE_HOST"}
    variables.update(environment)
    if path is not None:
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, [str(path), variables.get("PYTHONPATH")]))
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env=variables)


@pytest.mark.slow
def test_the_standin_is_used_where_it_is_asked_for():
    result = python(SAY, EGG_SPARSE_HOST="standin")
    assert result.stdout == "egg_sparse.standin | egg_sparse's stand-in for egg.core\n"
    assert result.stderr == ""


@pytest.mark.slow
def test_standin_without_a_word_where_there_is_no_egg():
    hide = "import sys; sys.meta_path.insert(0, type('Hide', (), {'find_spec': staticmethod(find)}))"
    code = f"""
        def find(name, path=None, target=None):
            if name.split('.')[0] == 'egg':
                raise ModuleNotFoundError("No module named 'egg'", name='egg')
        {hide}
        {SAY}
        """
    result = python(code)
    assert result.stdout.startswith("egg_sparse.standin |")
    assert result.stderr == ""
    result = python(code, EGG_SPARSE_HOST="egg")
    assert (
        "ImportError: EGG_SPARSE_HOST=egg, but EGG cannot be used: there is no package egg. To get it: pip"
        in result.stderr
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("files", "cause"),
    [
        ({"egg/__init__.py": ""}, "the package egg that is installed is not EGG (it has no egg.core)"),
        ({"egg.py": ""}, "the package egg that is installed is not EGG (it has no egg.core)"),
        ({"egg/__init__.py": "", "egg/core.py": ""}, "the egg.core that is installed is not EGG's (it has no Trainer"),
        (
            {"egg/__init__.py": "", "egg/core.py": "import wandb_that_is_missing"},
            "egg.core needs the package wandb_that_is_missing",
        ),
        ({"egg/__init__.py": "1 / 0"}, "importing egg.core failed with ZeroDivisionError: division by zero"),
    ],
)
def test_unrelated_or_incomplete_egg_warns_once(tmp_path, files, cause):
    for name, text in files.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    result = python(SAY + "; host.core", path=tmp_path)
    assert result.stdout.startswith("egg_sparse.standin |")
    assert result.stderr.count("RuntimeWarning") == 1
    assert f"EGG cannot be used, so egg_sparse runs on its stand-in: {cause}" in result.stderr
    assert python(SAY, path=tmp_path, EGG_SPARSE_HOST="standin").stderr == ""
    forced = python(SAY, path=tmp_path, EGG_SPARSE_HOST="egg")
    assert forced.returncode
    assert cause in forced.stderr


@pytest.mark.slow
def test_an_unknown_host_is_refused():
    result = python(SAY, EGG_SPARSE_HOST="eggs")
    assert """ValueError: EGG_SPARSE_HOST must be "egg" or "standin", got 'eggs'""" in result.stderr


def test_real_egg_is_used(egg):
    result = python(SAY)
    assert result.stdout.startswith("egg.core | EGG")


@pytest.mark.slow
def test_import_is_light():
    """Importing the package imports torch and entmax, and none of the extras."""
    code = """
        import sys, torch
        before = set(sys.modules)
        import egg_sparse
        print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))
        """
    loaded = set(python(code).stdout.split())
    assert "egg_sparse" in loaded
    assert not loaded & {"sklearn", "rich", "matplotlib", "tensorboard", "h5py", "torchvision", "scipy", "egg"}


class TestLoading:
    def saved(self, tmp_path, value):
        path = tmp_path / "saved.tar"
        torch.save(value, path)
        return path

    def checkpoint(self, core=standin):
        weights = torch.nn.Linear(2, 3).state_dict()
        callbacks = sys.modules[f"{core.__name__}.callbacks"]
        return callbacks.Checkpoint(4, weights, {"state": {}, "param_groups": []}, None)

    def test_reads_a_checkpoint_of_either_host(self, core, tmp_path):
        loaded = checkpoints.read(self.saved(tmp_path, self.checkpoint(core)))
        assert loaded.epoch == 4
        assert loaded.model_state_dict["weight"].shape == (3, 2)

    @pytest.mark.skipif(
        tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 6), reason="torch < 2.6 has no aliases"
    )
    def test_reads_eggs_checkpoints_without_egg(self, egg, tmp_path):
        path = self.saved(tmp_path, self.checkpoint(egg))
        code = f"from egg_sparse.zoo import checkpoints; print(checkpoints.read({str(path)!r}).epoch)"
        assert python(code, EGG_SPARSE_HOST="standin").stdout == "4\n"

    def test_refuses(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no checkpoint"):
            checkpoints.read(tmp_path / "missing.tar")
        whole = self.saved(tmp_path, self.checkpoint()).read_bytes()
        for content in (b"", b"not a checkpoint", whole[: len(whole) // 2], whole[:-40]):
            path = tmp_path / "damaged.tar"
            path.write_bytes(content)
            with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
                checkpoints.read(path)
        for value in ({"model": 1}, torch.zeros(3), [1, 2]):
            with pytest.raises(ValueError, match=r"not a checkpoint"):
                checkpoints.read(self.saved(tmp_path, value))

    def test_executes_nothing(self, tmp_path):
        marker = tmp_path / "executed"

        class Attack:
            def __reduce__(self):
                return (os.mkdir, (str(marker),))

        path = self.saved(tmp_path, standin.callbacks.Checkpoint(1, {"weight": Attack()}, {}, None))
        with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
            checkpoints.read(path)
        assert not marker.exists()

    def test_weights_of_another_architecture_are_refused_by_name(self):
        model = torch.nn.Linear(2, 3)
        checkpoints.check_architecture(model, model.state_dict(), "a.tar")
        other = {**model.state_dict(), "weight": torch.zeros(3, 4)}
        with pytest.raises(ValueError, match=r"weight.*\(3, 4\).*\(3, 2\)"):
            checkpoints.check_architecture(model, other, "a.tar")
        with pytest.raises(ValueError, match=r"more .*absent"):
            checkpoints.check_architecture(model, {**model.state_dict(), "more": torch.zeros(1)}, "a.tar")
