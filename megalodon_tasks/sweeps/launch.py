"""Hand the runs of a sweep to one of hydra's launchers.

``local`` is joblib: a number of runs at a time.  ``submitit_local`` starts all runs at once, and
``slurm`` submits them as a job array.  Nothing here schedules anything.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import megalodon_tasks
from megalodon_tasks.cli.train import quoted
from megalodon_tasks.sweeps.request import Run

HYDRA_NAMES = {"local": "joblib", "submitit_local": "submitit_local", "slurm": "submitit_slurm"}
PACKAGE = "megalodon_tasks.sweeps"

# Stands in for sbatch in a dry run: keeps the script, submits nothing.
_KEEP_SCRIPT = '#!/bin/sh\ncp "$1" "{kept}"\necho "dry run: nothing is submitted" >&2\nexit 1\n'


@dataclass(frozen=True)
class Launcher:
    """name: of ``HYDRA_NAMES``.  workers: runs at a time.  threads: CPU threads of a run, 0 = torch's
    choice.  options: fields of hydra's launcher.
    """

    name: str
    workers: int
    threads: int
    options: dict[str, str] = field(default_factory=dict)

    @property
    def outlives_us(self) -> bool:
        """Whether runs go on when the process that submitted them ends."""
        return self.name == "slurm"

    def command(self, folder: Path, runs: Sequence[Run], sign: Path | None) -> list[str]:
        """The hydra application over ``runs``; ``sign`` is the file that says that we live."""
        words = [
            f"hydra/launcher={HYDRA_NAMES[self.name]}",
            f"hydra.sweep.dir={quoted(str(folder / 'hydra'))}",
            "hydra.sweep.subdir=${run}",
            "hydra.job.chdir=false",
            f"folder={quoted(str(folder))}",
            f"threads={self.threads}",
            f"alive={quoted(str(sign)) if sign else ''}",
            "run=" + ",".join(quoted(run.name) for run in runs),
        ]
        words += [f"hydra.launcher.{key}={value}" for key, value in self._fields().items()]
        return [sys.executable, "-m", PACKAGE, "--multirun", *words]

    def _fields(self) -> dict[str, str]:
        if self.name == "local":
            # one job at a time, so that a free worker takes the next
            own = {
                "n_jobs": str(self.workers),
                "batch_size": "1",
                "pre_dispatch": str(self.workers),
            }
        else:
            own = {"name": "megalodon-sweep"}
        return own | self.options


def start(launcher: Launcher, folder: Path, runs: Sequence[Run], sign: Path) -> subprocess.Popen:
    """Start the hydra application in the background; what it prints goes to ``launcher.log``."""
    with open(folder / "launcher.log", "ab") as log:
        return subprocess.Popen(
            launcher.command(folder, runs, None if launcher.outlives_us else sign),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_variables(),
            start_new_session=True,  # Ctrl-C reaches the runs through the sign of life
        )


def sbatch_script(launcher: Launcher, folder: Path, runs: Sequence[Run]) -> str:
    """The job script that submitit would submit for ``runs``.

    Raises ``ValueError`` with the launcher's last words where it makes none.
    """
    with tempfile.TemporaryDirectory() as scratch:
        tools, kept = Path(scratch, "tools"), Path(scratch, "script")
        tools.mkdir()
        for name in ("sbatch", "srun"):
            (tools / name).write_text(_KEEP_SCRIPT.format(kept=kept))
            (tools / name).chmod(0o755)
        variables = _variables()
        variables["PATH"] = f"{tools}{os.pathsep}{variables.get('PATH', '')}"
        done = subprocess.run(
            launcher.command(Path(scratch), runs, None),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=variables,
        )
        if not kept.is_file():
            last = (done.stderr or done.stdout).strip().splitlines()[-1:]
            raise ValueError(f"the launcher made no job script: {' '.join(last)}")
        return kept.read_text().replace(scratch, str(folder))


def minutes(text: str) -> str:
    """``90``, ``1:30:00`` or ``2-00:00:00`` as minutes; raises ``ValueError`` for anything else."""
    match = re.fullmatch(r"(\d+)|(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text)
    if match is None:
        raise ValueError(f"--time {text!r}: give minutes, H:MM:SS or D-HH:MM:SS")
    if match[1]:
        return match[1]
    days, hours, mins, secs = (int(part or 0) for part in match.groups()[1:])
    return str((days * 24 + hours) * 60 + mins + (secs > 0))


def _variables() -> dict[str, str]:
    """The environment in which the launcher's processes find this package, also from a checkout."""
    root = str(Path(megalodon_tasks.__file__).resolve().parent.parent)
    before = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([root, before] if before else [root])}
