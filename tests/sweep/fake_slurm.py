"""Commands of SLURM that run jobs on this machine, at once, so that what a sweep submits really runs."""

import os
import pathlib
import subprocess
import sys

COMMANDS = ("sbatch", "srun", "sacct", "scontrol", "scancel")


def install(folder: pathlib.Path) -> dict[str, str]:
    """Writes the commands to a folder; returns the variables that a process needs to find them.

    The folder then has every batch script as ``JOB.sh``, the state of every job in ``JOB`` or ``JOB_INDEX``, and in
    ``requeued`` the jobs that were queued again.
    """
    folder.mkdir()
    for name in COMMANDS:
        command = folder / name
        command.write_text(f'#!/bin/bash\nexec {sys.executable} {__file__} {name} "$@"\n')
        command.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}", "FAKE_SLURM": str(folder)}


def start(folder: pathlib.Path, job: str) -> None:
    """Runs a job in the background; one that was queued again waits for its earlier process."""
    (folder / job).write_text("RUNNING")
    number, _, index = job.partition("_")
    variables = {"SLURM_JOB_ID": str(int(number) + int(index or 0)), "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}
    if index:
        variables |= {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": index}
    state = folder / job
    # the name of a job's state file while its script runs, so that a job that is queued again finds its end
    script = f"""
        while [ -e {state}.runs ]; do sleep 0.05; done
        touch {state}.runs
        bash {folder}/{number}.sh
        code=$?
        rm {state}.runs
        [ "$(cat {state})" = REQUEUED ] || {{ [ $code = 0 ] && echo COMPLETED > {state} || echo FAILED > {state}; }}
        [ "$(cat {state})" = REQUEUED ] && exec {folder}/scontrol start {job}
    """
    subprocess.Popen(
        ["bash", "-c", script],
        env={**os.environ, **variables},
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def sbatch(folder: pathlib.Path, script: str) -> None:
    text = pathlib.Path(script).read_text()
    number = str(100 + 10 * len(list(folder.glob("*.sh"))))
    (folder / f"{number}.sh").write_text(text)
    array = [line for line in text.splitlines() if line.startswith("#SBATCH --array=0-")]
    last = int(array[0].partition("=0-")[2].partition("%")[0]) if array else None
    for job in [number] if last is None else [f"{number}_{index}" for index in range(last + 1)]:
        start(folder, job)
    print(f"Submitted batch job {number}")


def srun(folder: pathlib.Path, *arguments: str) -> None:
    array, index = (os.environ.get(f"SLURM_ARRAY_{name}", "") for name in ("JOB_ID", "TASK_ID"))
    words = list(arguments)
    assert words.pop(0) == "--unbuffered", arguments
    outputs = {}
    while words[0] in ("--output", "--error"):
        outputs[words[0]] = words[1].replace("%A", array).replace("%a", index).replace("%t", "0")
        del words[:2]
    for number, path in ((1, outputs["--output"]), (2, outputs.get("--error", outputs["--output"]))):
        with open(path.replace("%j", os.environ["SLURM_JOB_ID"]), "ab") as file:
            os.dup2(file.fileno(), number)
    os.execvp(words[0], words)


def sacct(folder: pathlib.Path, *_: str) -> None:
    print("JobID|State|NodeList")
    for path in folder.iterdir():
        if path.name.replace("_", "").isdigit():
            print(f"{path.name}|{path.read_text().strip()}|here")


def scontrol(folder: pathlib.Path, what: str, job: str) -> None:
    if what == "start":
        start(folder, job)
        return
    assert what == "requeue"
    with (folder / "requeued").open("a") as file:
        file.write(f"{job}\n")
    (folder / job).write_text("REQUEUED")


if __name__ == "__main__":
    globals()[sys.argv[1]](pathlib.Path(os.environ["FAKE_SLURM"]), *sys.argv[2:])
