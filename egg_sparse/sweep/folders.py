"""The folder of a sweep: which runs it has, in which folders they are, and how each of them stands."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import re
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from egg_sparse.sweep.experiments import Run
from egg_sparse.sweep.grids import SEED
from egg_sparse.zoo import run_folder

MANIFEST, RECORD, LOG = "sweep.json", "job.json", "log.txt"
"""The sweep's list of runs; in the folder of each run how its last job stands, and what its jobs printed."""

LOCK = ".lock"
NAME_LENGTH = 120

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # of a file system that has none


class Claim:
    """The right to run the run of a folder, which one process at a time has; it ends with the process, however it ends.

    Args:
        folder: the folder; it is made if there is none.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self.path = folder / LOCK
        self._descriptor: int | None = None

    def take(self, patience: float = 0.0) -> bool:
        """Takes it, unless another process has it for longer than ``patience`` seconds."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        until = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    if time.monotonic() < until:
                        time.sleep(0.05)
                        continue
                    os.close(descriptor)
                    return False
            self._descriptor = descriptor
            return True

    def release(self) -> None:
        """Gives it back."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def is_claimed(folder: pathlib.Path) -> bool:
    """Whether a process has the claim on a folder now."""
    if not (folder / LOCK).is_file():
        return False
    claim = Claim(folder)
    free = claim.take()
    claim.release()
    return not free


@contextlib.contextmanager
def _locked(root: pathlib.Path) -> Iterator[None]:
    claim = Claim(root)
    if not claim.take(patience=60):
        raise OSError(f"another sweep has kept {root / LOCK} locked for a minute")
    try:
        yield
    finally:
        claim.release()


def name_of(given: dict[str, Any], varying: Sequence[str]) -> str:
    """The name of a run's folder: the options that vary and the seed.

    Example:
        >>> name_of({"mode": "marg", "n_epochs": 2, "lr": 0.01, "random_seed": 1}, ["mode", "lr"])
        'mode=marg,lr=0.01,seed=1'
    """
    parts = [f"{name}={given[name]}" for name in varying if name in given and name != SEED]
    parts += [f"seed={given[SEED]}"] if SEED in given else []
    name = re.sub(r"[^\w.,=+-]+", "_", ",".join(parts), flags=re.ASCII).lstrip(".-")
    if len(name) > NAME_LENGTH:
        name = f"{name[: NAME_LENGTH - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name or "run"


def _read_manifest(path: pathlib.Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["runs"]
        [(each["folder"] + each["key"] + each["module"], {**each["options"]}) for each in entries]
        for folder in (each["folder"] for each in entries):
            if not folder or folder.startswith(".") or pathlib.PurePath(folder).name != folder:
                raise ValueError(f"{folder!r} is no name of a folder in it")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: choose another --root, or remove it ({error})") from error
    return entries


def _varying(given: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, list[str]]:
    """The options that are not the same in all runs of an experiment, by the experiment's module.

    Args:
        given: the module and the given options of every run.
    """
    of_module: dict[str, list[dict[str, Any]]] = {}
    for module, options in given:
        of_module.setdefault(module, []).append(options)
    several = ["game"] if len(of_module) > 1 else []
    varying = {}
    for module, runs in of_module.items():
        names = dict.fromkeys(name for options in runs for name in options)
        differ = [name for name in names if len({str(options.get(name, False)) for options in runs}) > 1]
        varying[module] = [*several, *differ]
    return varying


def plan(root: pathlib.Path, name: str, runs: Sequence[Run], write: bool = True) -> list[pathlib.Path]:
    """The folder of every run: the one it has had in earlier sweeps of this root, else a new one.

    Args:
        root: the folder of the sweep.
        name: the sweep's name.
        runs: the runs.
        write: whether the list of runs in the root is brought up to date.

    Raises:
        OSError, ValueError: the root cannot be written to, its list of runs is damaged, or a folder holds a run of
            other options.
    """
    try:
        if write:
            root.mkdir(parents=True, exist_ok=True)
        with _locked(root) if write else contextlib.nullcontext():
            entries = _read_manifest(root / MANIFEST)
            folders = _name_new(entries, runs)
            if write:
                content = {"version": 1, "name": name, "runs": entries}
                with run_folder.whole_file(root / MANIFEST) as unfinished:
                    unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise OSError(f"--root: cannot write to {root}: {error.strerror or error}") from error
    paths = [root / folder for folder in folders]
    for run, folder in zip(runs, paths, strict=True):
        _check_options(run, folder)
    return paths


def _name_new(entries: list[dict[str, Any]], runs: Sequence[Run]) -> list[str]:
    """The folder of each run; adds those that ``entries`` lacks."""
    known = {entry["key"]: entry for entry in entries}
    taken = {entry["folder"] for entry in entries}
    given = [(entry["module"], entry["options"]) for entry in entries]
    varying = _varying([*given, *((run.experiment.module, run.given) for run in runs if run.key not in known)])
    for run in runs:
        if run.key in known:
            continue
        options = {"game": run.experiment.name, **run.given}
        wanted = folder = name_of(options, varying[run.experiment.module])
        number = 1
        while folder in taken:
            number += 1
            folder = f"{wanted}-{number}"
        taken.add(folder)
        entry = {
            "folder": folder,
            "game": run.experiment.name,
            "module": run.experiment.module,
            "options": run.given,
            "arguments": run.arguments,
            "key": run.key,
        }
        known[run.key] = entry
        entries.append(entry)
    return [known[run.key]["folder"] for run in runs]


def _check_options(run: Run, folder: pathlib.Path) -> None:
    """Raises ValueError if the folder holds a run of other options."""
    if not run.experiment.in_zoo or not (folder / run_folder.OPTIONS_FILE).is_file():
        return
    saved = run_folder.load_options_of(folder)
    for name, value in run.options.items():
        if saved.get(name, value) != value:
            raise ValueError(
                f"{folder} holds a run with --{name} {saved[name]}, expected {value}: choose another --root"
            )


def command(run: Run, folder: pathlib.Path) -> list[str]:
    """What a user would type to run it."""
    return [pathlib.Path(sys.executable).name, "-m", run.experiment.command, *job_arguments(run, folder)]


def job_arguments(run: Run, folder: pathlib.Path) -> list[str]:
    """The command line of a run in its folder, where it goes on if it has been there before."""
    if run.experiment.in_zoo:
        return [*run.arguments, f"--out={folder}", "--preemptable"]
    # EGG's games go on in the same job of SLURM alone
    preemptable = ["--preemptable"] if "preemptable" in run.names and "SLURM_JOB_ID" in os.environ else []
    checkpoints = [f"--checkpoint_dir={folder / run_folder.CHECKPOINTS}"] if "checkpoint_dir" in run.names else []
    return [*run.arguments, *checkpoints, *preemptable]


def results(run: Run, folder: pathlib.Path) -> dict[str, Any] | None:
    """The results of a run that has ended well, None of any other."""
    if not run.experiment.in_zoo:
        record = read_record(folder)
        ended = record.get("state") == "done" and record.get("key") == run.key
        return last_line_of_json(folder / LOG) or {} if ended else None
    try:
        found = json.loads((folder / run_folder.RESULTS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and (folder / run_folder.OPTIONS_FILE).is_file() else None


def write_record(folder: pathlib.Path, **record: Any) -> None:
    """Writes how the job of a run stands."""
    with run_folder.whole_file(folder / RECORD) as unfinished:
        unfinished.write_text(json.dumps(record) + "\n", encoding="utf-8")


def read_record(folder: pathlib.Path) -> dict[str, Any]:
    """How the last job of a run stands; empty if there was none, or the file is damaged."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(record, dict):
        return {}
    numbers = (record.get(name, 0) for name in ("started", "ended", "pid"))
    return record if all(isinstance(each, (int, float)) for each in numbers) else {}


def last_lines(path: pathlib.Path) -> list[str]:
    """The lines at the end of a file, none if there is no file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 65536))
            return file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []


def last_line_of_json(path: pathlib.Path) -> dict[str, Any] | None:
    """The last line of a file that is a JSON object."""
    for line in reversed(last_lines(path)):
        if line.startswith("{"):
            with contextlib.suppress(ValueError, RecursionError):
                return json.loads(line)
    return None


def progress(folder: pathlib.Path) -> dict[str, Any]:
    """The newest metrics of a run, with their epoch; empty if there are none."""
    metrics = folder / run_folder.METRICS_FILE
    return last_line_of_json(metrics if metrics.is_file() else folder / LOG) or {}


def last_error(log: pathlib.Path) -> str:
    """The error of the last job in a log, empty if it names none."""
    for line in reversed(last_lines(log)):
        said = re.match(r"[\w.]+: error: (.*)", line)
        if said:
            return said[1]
        if line.startswith("# $ "):
            break
    return ""


def begin_log(command_line: Sequence[str]) -> str:
    """The line that begins the log of a job."""
    return f"# {time.strftime('%Y-%m-%d %H:%M:%S')}\n# $ {shlex.join(command_line)}\n"
