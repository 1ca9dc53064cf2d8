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
from megalodon_tasks.configuration import find_recipe, quoted
from megalodon_tasks.files import atomic_file, has_writer, sole_writer
from megalodon_tasks.runs.sweep import DONE, Sweep, SweepRun, read_sweep

POLL_SECONDS = 0.5
APP = "from megalodon_tasks.runs.sweep_job import app; app()"


# The version is that of fairseq's own commands: hydra keeps one for the whole process.
@hydra.main(version_base="1.1", config_path=None)
def app(config: DictConfig) -> None:
    """Run the point ``config.run`` of the sweep in ``config.folder``, unless it is done.

    threads: CPU threads of the run; 0 leaves the choice to torch.  attached: stop when the sweep that
    started this job ends; false on a cluster, where jobs outlive the process that submitted them.
    A failure of the run is recorded, never raised.
    """
    sweep = read_sweep(Path(config.folder))
    run = next(run for run in sweep.runs if run.name == config.run)
    done = run.state == DONE
    # the job of a sweep that was killed needs a moment to stop
    with sole_writer(run.job, wait=True):
        if not done and not _abandoned(config):
            _perform(sweep, run, config)


def _abandoned(config: DictConfig) -> bool:
    return config.attached and not has_writer(Path(config.folder))


def _perform(sweep: Sweep, run: SweepRun, config: DictConfig) -> None:
    """Execute the recipe's script and record its exit status; kill it when the sweep has ended.

    A run resumes from its last checkpoint whatever ended it, so nothing is lost by that.
    """
    run.status_file.unlink(missing_ok=True)
    with open(run.output, "ab") as output:
        process = subprocess.Popen(
            run_command(sweep, run),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=variables(config.threads),
            start_new_session=True,
        )
    try:
        while process.poll() is None and not _abandoned(config):
            time.sleep(POLL_SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        with atomic_file(run.status_file, "w") as stream:
            stream.write(str(process.wait()))


def run_command(sweep: Sweep, run: SweepRun) -> list[str]:
    """Return the command that trains and evaluates ``run``."""
    return script_command(sweep, sweep.data, str(run.folder), *sweep.overrides(run))


def script_command(sweep: Sweep, *words: str) -> list[str]:
    """Return the command that gives ``words`` to the recipe's script."""
    demo = ["--demo"] if sweep.demo else []
    return ["bash", str(find_recipe(sweep.recipe).script), *demo, *words]


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
