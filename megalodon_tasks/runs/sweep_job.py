"""Run the points of a sweep as jobs of hydra's multirun.

The hydra application :func:`app` runs one point: the recipe's script, in a process of its own because
fairseq keeps state between two trainings of one process.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import hydra
from omegaconf import DictConfig

import megalodon_tasks
from megalodon_tasks.configuration import quoted
from megalodon_tasks.files import has_writer, sole_writer
from megalodon_tasks.runs.record import append
from megalodon_tasks.runs.sweep import Sweep, SweepRun, read_sweep

POLL_SECONDS = 0.5
APP = "from megalodon_tasks.runs.sweep_job import app; app()"


# The version is that of fairseq's own commands: hydra keeps one for the whole process.
@hydra.main(version_base="1.1", config_path=None)
def app(config: DictConfig) -> None:
    """Run one job of the multirun."""
    run_point(Path(config.folder), config.run, config.threads, config.attached)


def run_point(folder: Path, name: str, threads: int, attached: bool) -> None:
    """Run the point ``name`` of the sweep in ``folder`` unless it is done, and record the attempt.

    ``threads``: CPU threads of the run; 0 leaves the choice to torch.  ``attached``: kill the run when
    the sweep that started this job ends; not so on a cluster, where jobs outlive the process that
    submitted them.  A run resumes from its last checkpoint whatever ended it.
    """
    sweep = read_sweep(folder)
    run = next(run for run in sweep.runs if run.name == name)
    # wait for the job of a sweep that was killed, which needs a moment to stop
    with sole_writer(run.job, wait=True):
        abandoned = attached and not has_writer(folder)
        if run.status == 0 or abandoned:
            return
        started = time.monotonic()
        with open(run.output, "ab") as output:
            process = subprocess.Popen(
                sweep.command(run),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=variables(threads),
                start_new_session=True,
            )
        try:
            while process.poll() is None and not abandoned:
                time.sleep(POLL_SECONDS)
                abandoned = attached and not has_writer(folder)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            status, seconds = process.wait(), time.monotonic() - started
            append(run.attempts_file, {"status": status, "seconds": seconds})


def variables(threads: int = 0) -> dict[str, str]:
    """Return the environment of a script: this interpreter, and ``threads`` CPU threads unless 0."""
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads)) if threads else {}
    return {**os.environ, "PYTHON": sys.executable, **limits}


def launch(sweep: Sweep, runs: Sequence[SweepRun], launcher: Sequence[str]) -> subprocess.Popen:
    """Start hydra's multirun over ``runs`` in the background; it prints into ``launcher.log``.

    ``launcher`` are the overrides that choose hydra's launcher and set its fields.
    """
    words = [
        f"hydra.sweep.dir={quoted(str(sweep.folder / 'runs'))}",
        "hydra.sweep.subdir=${run}/job",
        "hydra.job.chdir=false",
        f"+folder={quoted(str(sweep.folder))}",
        "+run=" + ",".join(quoted(run.name) for run in runs),
        *launcher,
    ]
    # so that the launcher's processes find this package from any folder, also in a checkout
    root = str(Path(megalodon_tasks.__file__).parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    with open(sweep.folder / "launcher.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", APP, "--multirun", *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C ends the sweep, and the jobs stop after it
        )
